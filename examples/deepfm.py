"""DeepFM (Guo et al. 2017) on census data, with embeddings of ids that nobody numbered: `damo.Embedding`."""

from itertools import pairwise

import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import damo_torchrec as damo
from dlrm_data.census import DATA_DIRECTORY, read_census


class DeepFM(nn.Module):
    def __init__(self, fields, dim=8, hidden=(64, 32)):
        super().__init__()
        adam = {"name": "adam", "gamma": 0.001}
        self.w = damo.Embedding(1, initializer={"name": "zeros"}, optimizer=adam)
        self.v = damo.Embedding(dim, initializer={"name": "truncate_normal", "stddev": 0.01}, optimizer=adam)
        layers = [m for a, b in pairwise((fields * dim, *hidden)) for m in (nn.Linear(a, b), nn.ReLU())]
        self.deep = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, ids):
        v = self.v(ids)  # (batch, fields, dim)
        pairs = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1, keepdim=True)
        return (self.w(ids).sum(1) + pairs + self.deep(v.flatten(1))).squeeze(1)


train, test = (read_census(DATA_DIRECTORY / f"adult_{part}.csv.gz") for part in ("train", "test"))
model = DeepFM(fields=train.ids.shape[1])
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
for ids, labels in zip(*(torch.from_numpy(a).split(256) for a in (train.ids, train.labels)), strict=True):
    optimizer.zero_grad()
    nn.functional.binary_cross_entropy_with_logits(model(ids), labels).backward()  # updates the rows
    optimizer.step()
with torch.no_grad():
    scores = model.eval()(torch.from_numpy(test.ids))
print(f"{len(model.v.tables()[0])} rows, test AUC {roc_auc_score(test.labels, scores.numpy()):.4f}")
