"""What runs a model for inference servers. Part of the manifest; it changes nothing that a stage computes, so it is in no input hash."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from nemo_steerlm.pipeline.cluster_types import SecretKeySpec
from nemo_steerlm.pipeline.sources import Spec

Argument = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\r\n]+$")]

ONE_ENGINE = "name at most one of vllm, megatron and external; without any, transformers runs the model on one device"
STAGES_TO_DEVICES = "engine.megatron.pipeline must divide devices: the quotient is the tensor parallel size"

NO_GUIDANCE = "annotate.servers.engine.vllm combines no two prompts, which evaluate.guidanceScale asks for: leave one of them out"


class VllmSpec(Spec):
    """vLLM with as many tensor-parallel ranks as the server has devices; a server of this package before it adds the attributes."""

    args: Annotated[tuple[Argument, ...], Field(max_length=64)] = ()
    """More options of ``vllm serve``, a word each, such as ``[--max-model-len, "8192"]``."""


class MegatronSpec(Spec):
    """NeMo's own layers on the training's checkpoint, spread over the server's devices: for models that are too large to be exported."""

    pipeline: Annotated[int, Field(ge=1, le=64)] = 1
    """Pipeline stages; ``devices`` divided by it is the tensor parallel size."""

    def options(self, devices: int) -> list[str]:
        """Options of ``steerlm serve`` for so many devices."""
        return ["--tensor-parallel", str(devices // self.pipeline), "--pipeline-parallel", str(self.pipeline)]


class ExternalSpec(Spec):
    """A server elsewhere that has the weights and speaks OpenAI's API, such as vLLM's, a KServe InferenceService or a NIM."""

    url: Annotated[str, Field(min_length=8, max_length=512, pattern=r"^https?://[^\s/:]+(:[0-9]{1,5})?$")]
    """``http://HOST:PORT`` or ``https://HOST``, without a path."""
    token: SecretKeySpec | None = None
    """The Secret's key that has the token which it asks for; ``steerlm run`` takes ``STEERLM_UPSTREAM_KEY`` from its environment."""

    def options(self, patience: int) -> list[str]:
        """Options of ``steerlm serve``, which waits ``patience`` seconds for the other server: it may still be loading."""
        return ["--engine", "openai", "--upstream", self.url, "--upstream-wait", str(patience)]


class EngineSpec(Spec):
    """What runs the model: one of these, or transformers on one device where none is named."""

    vllm: VllmSpec | None = None
    """vLLM, in a container of ``images.vllm``; ``steerlm run`` takes the program from ``STEERLM_VLLM``."""
    megatron: MegatronSpec | None = None
    """NeMo's layers, in the image of the trainings."""
    external: ExternalSpec | None = None
    """The weights are on a server elsewhere, and none are loaded; needs no ``devices``."""

    @model_validator(mode="after")
    def _one(self) -> EngineSpec:
        if sum(engine is not None for engine in (self.vllm, self.megatron, self.external)) > 1:
            raise ValueError(ONE_ENGINE)
        return self

    def fit(self, devices: int) -> None:
        """Raise ValueError where so many devices cannot be divided as the engine says."""
        if self.megatron and devices % self.megatron.pipeline:
            raise ValueError(f"{STAGES_TO_DEVICES}; found {self.megatron.pipeline} and {devices}")
