"""The planted training steps, and the right ones."""

from dataclasses import dataclass

from verified_losses.properties.step.laws import COPIES, NO_FRESH, REDUCES, SKIPPED
from verified_losses.properties.step.target import Trainer
from verified_losses.properties.step.verify import NO_SYNC
from verified_losses.properties.subjects import Subject

from ..index import OPEN_CLIP, STABLE_PRETRAINING

GRADS, VALUES, BUFFERS, LOGGED, GETS, AGREE, FRESH, SCALE, RNG, DRAWS, UNEVEN = (
    "gradients equal one process",
    "parameters equal one process",
    "buffers equal one process",
    "logged loss is the mean",
    "every parameter gets a gradient",
    "ranks agree",
    "used equals fresh",
    "loss scale never matters",
    "RNG states are as promised",
    "random draws equal one process",
    "unequal rows equal one process",
)


@dataclass(frozen=True)
class Planted:
    """A training step.

    Args:
        name: of the class.
        wrong: what is wrong with it; empty where it is right.
        caught_by: the laws that catch it.
        world: in which it is caught, or, of a right one, in which it runs.
        source: where it was seen.
        raises: words of its own exception, where it raises.
        uneven: it is right where rows are split unequally, too.
        dtypes: in which it runs.
        skips: why a law says nothing of a right one, where one does.
    """

    name: str
    wrong: str = ""
    caught_by: tuple[str, ...] = ()
    world: str = "proc:2"
    source: str = ""
    raises: str = ""
    uneven: bool = False
    dtypes: tuple[str, ...] = ("float64", "float32")
    skips: str = ""

    @property
    def trainer(self) -> Trainer:
        """The target, as it is asked for."""
        place = "wrong" if self.wrong else "right"
        return Trainer(
            Subject(f"tests.defects.steps.{place}:{self.name}"), dtypes=self.dtypes, strict=self.uneven
        )


SWIFT = "https://github.com/modelscope/ms-swift/issues"
DEFECTS = [
    Planted("GradientSum", "gradients are summed over ranks", (GRADS,), "sim:2-8", f"{SWIFT}/10081; {SWIFT}/10150"),
    Planted("GradientAlmostMean", "gradients are 1 + 1e-6 of the mean", (GRADS,), "sim:2-8"),
    Planted("ReducesWeightsAlone", "biases are not reduced", (GRADS, AGREE), "sim:2-8"),
    Planted("NeverSynchronises", "no_sync holds for the last micro-batch too", (GRADS, AGREE)),
    Planted("TimesAccumulation", "gradients are multiplied by the number of micro-batches", (GRADS,), "1",
            f"{OPEN_CLIP}/issues/957"),
    Planted("LocalBatchNorm", "statistics of a rank's own rows", (GRADS,)),
    Planted("AuxiliaryTimesWorld", "an auxiliary loss is multiplied by the number of ranks", (GRADS,),
            source="https://github.com/huggingface/transformers/issues/48690"),
    Planted("AuxiliaryOverWorld", "an auxiliary loss is divided by the number of ranks once more", (GRADS,)),
    Planted("ForgetsZeroGrad", "gradients of earlier steps stay", (FRESH,), "1"),
    Planted("RepeatsRows", "an odd number of rows is padded by repeating one", (GRADS,)),
    Planted("ClipsBeforeUnscaling", "gradients are clipped while they are multiplied by the loss scale", (SCALE,), "1"),
    Planted("ClipsBeforeReducing", "each rank clips its own gradients", (GRADS,), "sim:2-8"),
    Planted("FsdpAddsUp", "gradients of micro-batches are added up, by FSDP2 in one process", (GRADS,), "1"),
    Planted("FsdpReplicatedScalar", "a scalar that FSDP2 does not shard is not reduced", (GRADS, AGREE)),
    Planted("LocalNegatives", "a contrastive loss compares rows of one rank", (GRADS, LOGGED),
            source=f"{STABLE_PRETRAINING}/pull/409"),
    Planted("LogsLastMicroBatch", "the loss of the last micro-batch is logged", (LOGGED,), "1"),
    Planted("SeedsByRank", "each rank initialises its own parameters", (VALUES,), "sim:2-8"),
    Planted("NeverUsesHead", "a layer that requires grad is not used", (GETS,), "1"),
    Planted("OptimizesBeforeReducing", "the optimizer steps before gradients are reduced", (GRADS,), "sim:2-8"),
    Planted("DdpOfModule", "the module below DistributedDataParallel is called", (GRADS, AGREE)),
    Planted("LocalStatistics", "running statistics are of a rank's own rows", (BUFFERS,), "sim:2-8"),
    Planted("BiasedVariance", "the running variance is divided by a rank's own rows", (BUFFERS,), "sim:2-8"),
    Planted("AveragesEveryMicroBatch", "an average of the weights decays with every micro-batch", (BUFFERS,), "1"),
    Planted("AveragesInAList", "one of several averages decays with every micro-batch", (BUFFERS,), "1"),
    Planted("StatesAverage", "an average that is in no module decays with every micro-batch", (BUFFERS,), "1"),
    Planted("AveragesInACallback", "an average of a callback decays with every micro-batch", (BUFFERS,), "1"),
    Planted("QueueOfRank", "each rank has a queue of its own rows", (BUFFERS,)),
    Planted("PointerOfRank", "the pointer of a queue moves by a rank's own rows", (BUFFERS,), "proc:2"),
    Planted("DrawsOwnRows", "random numbers are drawn for a rank's own rows", (RNG, DRAWS), "proc:2"),
    Planted("TakesFirstRows", "random numbers of rank 0's rows are taken", (DRAWS,), "proc:2"),
    Planted("ReducesRealParts", "imaginary parts of gradients are not reduced", (GRADS, AGREE)),
    Planted("SeedsAnew", "the generator is seeded otherwise than stated", (RNG,), "1"),
    Planted("RaisesOnRankOne", "a rank raises", (GRADS,), "sim:2-8", raises="rank 1 has no data"),
]  # fmt: skip
RIGHT = [
    Planted("HandReduced", world="1,sim:2-8,proc:2"),
    Planted("Alone", world="1"),
    Planted("DdpPlain"),
    Planted("DdpAccumulates", world="1,proc:2"),
    Planted("DdpWithAdam"),
    Planted("DdpLeavesNoGradients", world="1,proc:2"),
    Planted("Fsdp"),
    Planted("FsdpAlone", world="1,proc:2"),
    Planted("FsdpReducesScalar"),
    Planted("SynchronisedBatchNorm", world="sim:2-8,proc:2"),
    Planted("SyncBatchNormOfTorch", skips=NO_SYNC),
    Planted("DropoutOfRows", world="1,proc:2"),
    Planted("ClipsUnscaled", world="1,proc:2"),
    Planted("PairsRows", world="1,sim:2-3"),
    Planted("WeighsRows", world="1,sim:2-8,proc:2", uneven=True),
    Planted("ContrastiveGathers", uneven=True),
    Planted("GradCache", world="1,proc:2", uneven=True),
    Planted("Embeds"),
    Planted("Convolves"),
    Planted("Attends"),
    Planted("Autocasts"),
    Planted("Checkpoints"),
    Planted("Functional", world="1,sim:2-4"),
    Planted("Compiles", world="1,proc:2"),
    Planted("FrozenStatistics", world="1,proc:2"),
    Planted("CountsBatches", world="1,proc:2"),
    Planted("Averages", world="1,proc:2"),
    Planted("AveragesOnRankZero"),
    Planted("BroadcastsBuffers"),
    Planted("QueueGathers"),
    Planted("SavesState"),
    Planted("StatesAPart"),
    Planted("DrawsAllRows", world="1,proc:2"),
    Planted("DrawsAllRowsUnpromised"),
    Planted("StatesGenerator", world="1,proc:2"),
    Planted("DropsOfRank", world="1,proc:2"),
    Planted("AttendsWithDropout", world="1,proc:2"),
    Planted("GivesClosure", world="1,proc:2"),
    Planted("CompilesDdp"),
    Planted("WrapsPart"),
    Planted("Experts"),
    Planted("ShardsOptimizer", world="1,sim:2-6"),
    Planted("WithoutOptimizer", world="sim:2-8"),
    Planted("CountsSteps", world="1"),
    Planted("CountsInItsProgress", world="1"),
    Planted("FirstFsdp"),
    Planted("AttendsAndSigns", world="1,proc:2"),
    Planted("Overflows", world="1,proc:2", skips=SKIPPED),
    Planted("OverflowsAndClears", world="1", skips=SKIPPED),
    Planted("OverflowsOnRanks", world="1,sim:2", dtypes=("float32",), skips=SKIPPED),
    Planted("AveragesInStep", world="1,sim:2-4"),
    Planted("AveragesApart", world="proc:2", skips=REDUCES),
    Planted("UpdatesCopies", world="1,sim:2-4", skips=COPIES),
    Planted("AveragesInHook", world="sim:2-4"),
    Planted("Probabilities", world="1"),
    Planted("CountsInFloats", world="1"),
    Planted("TaughtByAverage", world="1"),
    Planted("ReadsScheduler", world="1"),
    Planted("CountsInATensor", world="1"),
    Planted("TakesTurns", world="1"),
    Planted("RoundsItsLoss", world="1,proc:2"),
    Planted("LogsOneDecimal", world="1,sim:2-4"),
    Planted("LogsThreeDigits", world="1,sim:2-4"),
    Planted("SeedsItself", world="proc:2"),
    Planted("DrawsByItself", world="proc:2"),
    Planted("PlansBuckets", world="1", skips=NO_FRESH),
    Planted("AsksOnce", world="1,sim:2-4,proc:2"),
    Planted("LeavesABias", world="1"),
    Planted("FilteredRows", world="1,sim:2-4"),
    Planted("WrapsByHand", world="1,sim:2-4"),
    Planted("LogsOnRankZero", world="1,sim:2-4"),
]
