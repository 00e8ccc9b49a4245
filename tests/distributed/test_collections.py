"""Sharded collections do what the same collection does in one process, on the whole of each batch."""

import pytest
import torch
import torchrec

import damo_torchrec as damo
import spread
from spread import Case

_TWO = {"t": (["f", "g"], "SUM"), "u": (["h"], "SUM")}
_ADAM = (torch.optim.Adam, {"lr": 0.05})

BAGS = {
    "sum": Case(),
    "mean": Case({"t": (["f"], "MEAN")}),
    "features that share a table": Case(_TWO),
    "a feature of two tables": Case({"t": (["f", "g"], "SUM"), "u": (["f"], "MEAN")}),
    "sums and means": Case({"t": (["f"], "SUM"), "u": (["g"], "MEAN")}),
    "weights": Case(_TWO, weights="given"),
    "weights of means": Case({"t": (["f"], "MEAN"), "u": (["g"], "SUM")}, weights="given"),
    "learned weights": Case(_TWO, weights="learned"),
    "learned weights of means": Case({"t": (["f"], "MEAN"), "u": (["g"], "SUM")}, weights="learned"),
    "an idle rank": Case({"t": (["f"], "SUM"), "u": (["g"], "MEAN")}, weights="learned", idle=[0]),
    "half": Case(options={"t": damo.TableOptions(row_dtype=torch.bfloat16)}, store={}),
    "a table that is not trained": Case(_TWO, options={"u": damo.TableOptions(trainable=False)}),
    "zeros in train mode": Case(_TWO, options={"t": damo.TableOptions(unseen_in_train="zeros")}),
    "clipping": Case(optimizer=_ADAM, options={"t": damo.TableOptions(clip_grad_norm=0.5)}),
    "admission": Case(options={"t": damo.TableOptions(admit=damo.Admit(sightings=2))}, ids=200),
    "one sample a rank": Case(batch=4),
    "no id at all": Case(longest=0),
}
RULES = {
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}),
    "row-wise adagrad": (torchrec.optim.RowWiseAdagrad, {"lr": 0.1}),
    "adam": _ADAM,
    "adamw": (torch.optim.AdamW, {"lr": 0.05}),
    "partial row-wise adam": (torchrec.optim.PartialRowWiseAdam, {"lr": 0.05}),
    "lamb": (torchrec.optim.LAMB, {"lr": 0.05}),
    "partial row-wise lamb": (torchrec.optim.PartialRowWiseLAMB, {"lr": 0.05}),
    "lars": (torchrec.optim.LarsSGD, {"lr": 0.1}),
}
SEQUENCES = {
    "sequences": Case(sequences=True),
    "sequences of shared tables": Case(_TWO, sequences=True),
    "sequences of a feature of two tables": Case({"t": (["f", "g"], ""), "u": (["f"], "")}, sequences=True),
    "sequences of an idle rank": Case(_TWO, sequences=True, idle=[0]),
    "sequences of no id": Case(sequences=True, longest=0),
    "sequences with adam": Case(_TWO, sequences=True, optimizer=_ADAM),
}
CASES = {**BAGS, **{name: Case(_TWO, optimizer=rule) for name, rule in RULES.items()}, **SEQUENCES}


# With one rank and with four, those whose way through the exchange differs.
_OF_ALL_SIZES = ("sums and means", "learned weights", "an idle rank", "sequences of an idle rank")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_two_ranks_do_what_one_process_does(two_ranks, case):
    check(two_ranks, case)


@pytest.mark.parametrize("name", _OF_ALL_SIZES)
def test_any_number_of_ranks_does_what_one_process_does(ranks, name):
    check(ranks, CASES[name])


def check(ranks, case):
    alone = spread.train(0, case, group=False)
    of_ranks = ranks(spread.train, case, ranks.size)
    within = 2e-2 if "t" in case.options and case.options["t"].row_dtype is not None else 1e-5
    spread.assert_same_rows(spread.as_one([trained.rows for trained in of_ranks]), alone.rows, within)
    for trained in of_ranks:
        assert trained.iters == alone.iters
    if not case.sequences:
        for step, expected in enumerate(alone.outputs):
            found = torch.cat([trained.outputs[step] for trained in of_ranks])
            torch.testing.assert_close(found, expected, rtol=within, atol=within)
