"""A tiny random model and the engines that serve it; everything is made here, offline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guard.config import AdapterSettings
from guard.context import RequestContext, enter, leave
from guard.detection.literals import Found, Hit
from guard.speech import Judge, Look, Speech
from guard.types import Admission, Chosen, Decision, Match, Plan, Prompt, Reply, Span

WORDS = "the quick brown fox jumps over a lazy dog while many small birds sing in old trees"
BLOCK = 32


def pytest_configure(config: pytest.Config) -> None:
    """vLLM and what it imports warn about themselves."""
    for line in (
        "ignore::FutureWarning",
        "ignore::DeprecationWarning",
        "ignore:.*TF32:UserWarning",
        "ignore:Unclosed context:ResourceWarning",
    ):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with a few merges, so that words, letters and bytes all occur as tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [WORDS] * 20,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    path = tmp_path_factory.mktemp("tiny")
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="session")
def model_dir(tokenizer_dir: Path) -> Path:
    """A two-layer Llama with large random weights, so that every edit shows in its likelihoods."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tokenizer_dir)
    return tokenizer_dir


@dataclass
class Script:
    """A guard that says what the test tells it to, `late` seconds after it was asked; keeps what it was asked. With
    `early` the engine may begin before."""

    verdict: Callable[[Prompt], Admission] = lambda prompt: allowed()
    judged: list[Prompt] = field(default_factory=list)
    look: Look = lambda text, begun, ended: Found(len(text))
    reply: Reply = field(default_factory=Reply)
    judge: Judge | None = None
    policy: tuple[str, int] = ("cut", 0)
    follow: Callable[[Prompt, Hit], Admission | None] = lambda prompt, hit: None
    late: float = 0.0
    early: bool = False

    async def admit(self, prompt: Prompt, context: RequestContext | None) -> Admission:
        self.judged.append(prompt)
        if self.late:
            await asyncio.sleep(self.late)
        return self.verdict(prompt)

    def ahead(self, prompt: Prompt, context: RequestContext | None) -> bool:
        return self.early

    def speech(self, prompt: Prompt, context: RequestContext | None, admission: Admission) -> Speech:
        return Speech(self.look, self.judge)

    def after(self, hit: Hit) -> tuple[str, int]:
        return self.policy

    def again(self, prompt: Prompt, hit: Hit, before: Admission) -> Admission | None:
        return self.follow(prompt, hit)

    def reply_after(self, hit: Hit) -> Reply:
        return self.reply


def allowed() -> Admission:
    return Admission(Decision("allow", 1))


def edited(
    start: int = 0, end: int = 10_000, seed: str = "0123456789abcdef", **params: Any
) -> Callable[..., Any]:
    """A verdict that corrupts the characters [start, end)."""
    from guard.interventions.embedding_corruption import EmbeddingCorruption

    def verdict(prompt: Prompt) -> Admission:
        match = Match("jane", 1, 1.0, 0.5, "lexical", (Span(start, end),))
        chosen = Chosen("embedding_corruption", params, (match,))
        plan = EmbeddingCorruption().plan(chosen, prompt, lambda _: seed)
        return Admission(Decision("intervene", 1, (match,), (chosen,)), plan)

    return verdict


def planned(plan: Plan, action: str = "intervene", **decision: Any) -> Callable[[Prompt], Admission]:
    return lambda prompt: Admission(Decision(action, 1, **decision), plan)


@dataclass
class Harness:
    """A served tiny model, its scripted guard, and a loop that outlives the tests."""

    engine: Any
    guard: Script
    run: Callable[[Awaitable[Any]], Any]
    made: int = 0

    def params(self, **wanted: Any) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        defaults = {"temperature": 0.0, "max_tokens": 6, "output_kind": RequestOutputKind.FINAL_ONLY}
        return SamplingParams(**{**defaults, **wanted})

    def prompt(self, text: str, **fields: Any) -> dict[str, Any]:
        ids = self.engine.get_tokenizer().encode(text, add_special_tokens=False)
        return {"type": "token", "prompt_token_ids": ids, "prompt": text, **fields}

    async def stream(
        self, prompt: Any, params: Any, context: RequestContext | None = None, plain: bool = False
    ) -> list[Any]:
        """All outputs of one call; `plain` asks vLLM's own client, past the guard."""
        guarded = type(self.engine)
        source = guarded.__mro__[1] if plain else guarded
        self.made += 1
        token = enter(context) if context else None
        try:
            return [o async for o in source.generate(self.engine, prompt, params, f"test-{self.made}")]
        finally:
            if token is not None:
                leave(token)

    def ask(self, prompt: Any, context: RequestContext | None = None, **wanted: Any) -> Any:
        """The last output of a guarded call."""
        prompt = self.prompt(prompt) if isinstance(prompt, str) else prompt
        return self.run(self.stream(prompt, self.params(**wanted), context))[-1]


def likelihoods(output: Any) -> list[float]:
    """The chosen tokens' log-probabilities."""
    (choice,) = output.outputs
    return [step[token].logprob for token, step in zip(choice.token_ids, choice.logprobs, strict=True)]


@contextmanager
def serving(model_dir: Path, adapters: AdapterSettings = AdapterSettings()) -> Iterator[Harness]:
    """An engine of its own for as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv(
            "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
        )  # the worker inside the engine's process: starts faster
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        from guard.engine import launch

        launch.pin_environment()
        engine = runner.run(_start(model_dir, adapters))
        guard = Script()
        sockets = engine.engine_core.resources.ctx
        yield Harness(engine, guard, runner.run)
        engine.shutdown()
        runner.run(asyncio.sleep(0))
        sockets.destroy(
            linger=0
        )  # vLLM leaves this to the garbage collector, which warns of it whenever it runs


@pytest.fixture(scope="session")
def _served(model_dir: Path) -> Iterator[Harness]:
    with serving(model_dir) as harness:
        yield harness


async def _start(model_dir: Path, adapters: AdapterSettings) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from guard.engine.client import GuardedAsyncLLM
    from guard.engine.launch import guarded_args

    options = [
        "--dtype",
        "float32",
        "--block-size",
        str(BLOCK),
        "--max-model-len",
        "512",
        "--max-num-seqs",
        "16",
    ]
    size = ["--kv-cache-memory-bytes", str(64 << 20)]
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    args = parser.parse_args(guarded_args(["--model", str(model_dir), *options, *size], adapters=adapters))
    return GuardedAsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args))


@pytest.fixture
def served(_served: Harness) -> Iterator[Harness]:
    """The engine with a guard that allows everything until the test says otherwise, and an empty cache."""
    _served.guard.verdict = lambda prompt: allowed()
    _served.guard.look = lambda text, begun, ended: Found(len(text))
    _served.guard.reply = Reply()
    _served.guard.judge = None
    _served.guard.policy = ("cut", 0)
    _served.guard.late, _served.guard.early = 0.0, False
    _served.guard.judged.clear()
    _served.engine.guard = _served.guard
    _served.run(_served.engine.reset_prefix_cache())
    yield _served
    _served.engine.guard = _served.guard
