"""TorchRec's models over our collections train as over TorchRec's own: the same losses, a hundred steps long."""

import pytest
import torch
import torchrec
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection

import damo_torchrec as damo
from support import config, random_kjt

DIM, DENSE, BATCH, ROWS, STEPS = 8, 5, 16, 40, 100
KEYS = ["item", "shop", "user"]
LR = 0.2


def pooled(*names):
    return torchrec.EmbeddingBagCollection([config(name, DIM, num_embeddings=ROWS) for name in names])


class TwoTowers(nn.Module):
    """A user's tower over a sequence, an item's over bags, and their inner product."""

    def __init__(self):
        super().__init__()
        self.users = torchrec.EmbeddingCollection(
            [torchrec.EmbeddingConfig(name="user", embedding_dim=DIM, num_embeddings=ROWS)]
        )
        self.items = pooled("item", "shop")
        self.user_tower = nn.Linear(DIM + DENSE, DIM)
        self.item_tower = nn.Linear(2 * DIM, DIM)

    def forward(self, dense, sparse):
        history = self.users(sparse)["user"]
        summed = torch.segment_reduce(history.values(), "sum", lengths=history.lengths(), axis=0)
        user = self.user_tower(torch.cat([summed, dense], dim=1))
        return (user * self.item_tower(self.items(sparse).values())).sum(1)


MODELS = {
    "DLRM": lambda: DLRM(pooled(*KEYS), DENSE, [16, DIM], [16, 1]),
    "DLRM_DCN": lambda: DLRM_DCN(pooled(*KEYS), DENSE, [16, DIM], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4),
    "DLRM_Projection": lambda: DLRM_Projection(
        pooled(*KEYS),
        DENSE,
        [16, DIM],
        [16, 1],
        interaction_branch1_layer_sizes=[16, 2 * DIM],
        interaction_branch2_layer_sizes=[16, 2 * DIM],
    ),
    "DeepFM": lambda: SimpleDeepFMNN(DENSE, pooled(*KEYS), hidden_layer_size=16, deep_fm_dimension=4),
    "two towers": TwoTowers,
}


def losses(model, optimizer):
    generator = torch.Generator().manual_seed(5)
    result = []
    for _ in range(STEPS):
        dense = torch.randn(BATCH, DENSE, generator=generator)
        sparse = random_kjt(generator, KEYS, BATCH, ROWS)
        labels = (dense[:, 0] > 0).float()
        optimizer.zero_grad()
        output = model(dense, sparse).squeeze(-1)
        if isinstance(model, SimpleDeepFMNN):  # gives probabilities
            output = torch.logit(output)
        loss = binary_cross_entropy_with_logits(output, labels)
        loss.backward()
        optimizer.step()
        result.append(loss.item())
    return torch.tensor(result)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_as_over_torchrecs_own_modules(store, name):
    torch.manual_seed(0)
    theirs = MODELS[name]()
    torch.manual_seed(0)
    ours = damo.swap(
        MODELS[name](), store=store, optimizer_type=torch.optim.SGD, optimizer_kwargs={"lr": LR}, copy_weights=True
    )
    assert not any(
        isinstance(m, torchrec.EmbeddingBagCollection | torchrec.EmbeddingCollection) for m in ours.modules()
    )
    expected = losses(theirs, torch.optim.SGD(theirs.parameters(), lr=LR))
    torch.testing.assert_close(losses(ours, torch.optim.SGD(ours.parameters(), lr=LR)), expected, rtol=2e-4, atol=2e-5)
    assert expected[-10:].mean() < 0.8 * expected[:10].mean()
