"""Early stopping by a checkpoint as the best state, and an average of the dense weights for evaluation."""

import shutil
import tempfile
from pathlib import Path

import torch
import torchrec
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo

PATIENCE, BATCH = 2, 256


class Model(nn.Module):
    """A user's row and an item's, under a dense part that is a module of its own: that one can be averaged."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=name, embedding_dim=8, num_embeddings=1000, feature_names=[name])
            for name in ("user", "item")
        ]
        self.rows = damo.EmbeddingBagCollection(tables, torchrec.optim.RowWiseAdagrad, {"lr": 0.5}, store=store)
        self.dense = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, features: KeyedJaggedTensor, dense: nn.Module) -> torch.Tensor:
        return dense(self.rows(features).values()).squeeze(1)


def batch_of(generator: torch.Generator) -> tuple[KeyedJaggedTensor, torch.Tensor]:
    """Users like items of their own kind, mostly."""
    ids = torch.randint(0, 40, (2, BATCH), generator=generator)
    like = (ids[0] % 4 == ids[1] % 4).float()
    noise = torch.rand(BATCH, generator=generator) < 0.2
    features = KeyedJaggedTensor(keys=["user", "item"], values=ids.flatten(), lengths=torch.ones(2 * BATCH).long())
    return features, torch.where(noise, 1 - like, like)


def main(run: Path) -> None:
    torch.manual_seed(0)
    loss_of = nn.BCEWithLogitsLoss()
    training, held_out = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    test = [batch_of(held_out) for _ in range(4)]
    with damo.EmbeddingStore(run / "store", memory_budget="64MiB") as store:
        model = Model(store)
        optimizer = torch.optim.Adam(model.dense.parameters(), lr=0.05)
        # Of the dense part alone: rows, which are not copied, stay as the last step made them.
        average = AveragedModel(model.dense, multi_avg_fn=get_ema_multi_avg_fn(0.9))

        def evaluate() -> float:
            model.eval()
            with torch.no_grad():
                losses = [loss_of(model(features, average), labels).item() for features, labels in test]
            model.train()
            return sum(losses) / len(losses)

        best, best_loss, worse = Path(), float("inf"), 0
        for epoch in range(100):
            for _ in range(20):
                features, labels = batch_of(training)
                optimizer.zero_grad()
                loss_of(model(features, model.dense), labels).backward()
                optimizer.step()
                average.update_parameters(model.dense)
            loss = evaluate()
            print(f"epoch {epoch}: test loss {loss:.4f}")
            if loss < best_loss:
                before, best_loss, worse = best, loss, 0
                best = run / f"best-{epoch}"
                damo.save_model(model, best, optimizer=optimizer, extra={"average": average.state_dict()})
                if before.name:
                    shutil.rmtree(before)
            else:
                worse += 1
                if worse == PATIENCE:
                    break
        # Rows, dense weights and optimizer go back to the best epoch together, and so does the average.
        damo.load_model(best, model, optimizer=optimizer)
        average.load_state_dict(damo.checkpoint_info(best).extra["average"])
        print(f"back to {best.name}: test loss {evaluate():.4f}, best {best_loss:.4f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:  # keep it, and `load_model` goes on from there
        main(Path(directory))
