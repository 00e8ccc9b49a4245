"""A store, a TorchRec collection over it, one step of training, and a row read back."""

import torch
import torchrec
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo

# Without a path the store is temporary; give it a directory to keep the rows.
with damo.EmbeddingStore(memory_budget="256MiB", seed=0) as store:
    collection = damo.EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name="t_user", embedding_dim=8, num_embeddings=1_000_000, feature_names=["user"])],
        optimizer_type=torchrec.optim.RowWiseAdagrad,
        optimizer_kwargs={"lr": 0.05},
        store=store,
    )
    # Three samples; any int64 is an id, and no table has to be as long as the largest of them.
    users = KeyedJaggedTensor.from_lengths_sync(
        keys=["user"],
        values=torch.tensor([7, -1, 2**63 - 1, 7]),
        lengths=torch.tensor([2, 0, 2]),
    )
    pooled = collection(users)["user"]  # (3, 8): the sum of each sample's rows
    pooled.square().sum().backward()  # creates the three rows and updates them

    table = store.table("t_user")
    print(f"{len(table)} rows; that of user 7: {table.get(torch.tensor([7]))}")
