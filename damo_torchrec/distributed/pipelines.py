"""A train pipeline that prefetches on CPUs, where TorchRec's own needs streams of a GPU."""

from collections.abc import Iterator
from typing import Any, TypeVar

from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist
from torchrec.distributed.train_pipeline.pipeline_context import PrefetchTrainPipelineContext
from torchrec.streamable import Pipelineable

In = TypeVar("In", bound=Pipelineable)
Out = TypeVar("Out")


class PrefetchTrainPipeline(PrefetchTrainPipelineSparseDist[In, Out]):
    """TorchRec's `PrefetchTrainPipelineSparseDist`, on CPUs too: ids of batch i + 2 travel while batch i is trained.

    The rows of batch i + 1 are read from disk from the forward of batch i on, by the store's own threads. No result
    depends on it: a row that batch i changes is changed before batch i + 1 reads it.
    """

    def progress(self, dataloader_iter: Iterator[In]) -> Out:
        """One step of training, as TorchRec's; also after `detach`, from where the pipeline was.

        Raises:
            StopIteration: all batches are done.
        """
        if not self._model_attached:  # TorchRec's other pipelines see to it themselves
            self.attach(self._model)
        return super().progress(dataloader_iter)

    def _prefetch(self, context: Any) -> None:
        if self._prefetch_stream is not None or context is None:
            super()._prefetch(context)
            return
        if not isinstance(context, PrefetchTrainPipelineContext):  # TorchRec before 1.7 gives the batch
            context = self._context
        context.module_input_post_prefetch.clear()
        context.module_contexts_post_prefetch.clear()
        for module in self._pipelined_modules:
            name = module.forward.name  # type: ignore[attr-defined]  # TorchRec's pipelined forward
            arrived = context.input_dist_tensors_requests.pop(name).wait()
            of_module = context.module_contexts.pop(name)
            module.prefetch(arrived, ctx=of_module)
            context.module_input_post_prefetch[name] = arrived
            context.module_contexts_post_prefetch[name] = of_module
