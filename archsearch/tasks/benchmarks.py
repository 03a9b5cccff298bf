"""Data sets of the Hub that are known by name: where they are, and what their columns hold.

GLUE (Wang et al. 2019, arXiv 1804.07461), SuperGLUE (Wang et al. 2019, 1905.00537), CodeXGLUE (Lu
et al. 2021, 2102.04664) and SCROLLS (Shaham et al. 2022, 2201.03533). Their test splits keep the
answers back: where that is so, train gives a test split of ours (texts.py).

Left out: STS-B, which asks for a number, and ReCoRD, which asks for one of many spans.
"""

from dataclasses import dataclass

REPOSITORIES = {"glue": "nyu-mll/glue", "super_glue": "aps/super_glue", "scrolls": "tau/scrolls"}
CODE = "code_x_glue_"


@dataclass(frozen=True)
class Benchmark:
    """Columns of a table.

    Attributes:
        inputs: what is read, one after the other.
        answer: the column of the class, or of the text to write.
        metric: of classes, the one that the benchmark scores.
    """

    inputs: tuple[str, ...]
    answer: str = "label"
    metric: str = "accuracy"


PAIR = ("sentence1", "sentence2")
GLUE = {
    "cola": Benchmark(("sentence",), metric="matthews"),
    "sst2": Benchmark(("sentence",)),
    "mrpc": Benchmark(PAIR, metric="macro_f1"),
    "qqp": Benchmark(("question1", "question2"), metric="macro_f1"),
    "mnli": Benchmark(("premise", "hypothesis")),
    "qnli": Benchmark(("question", "sentence")),
    "rte": Benchmark(PAIR),
    "wnli": Benchmark(PAIR),
}
SUPER_GLUE = {
    "boolq": Benchmark(("question", "passage")),
    "cb": Benchmark(("premise", "hypothesis"), metric="macro_f1"),
    "copa": Benchmark(("question", "premise", "choice1", "choice2")),
    "multirc": Benchmark(("question", "answer", "paragraph"), metric="macro_f1"),
    "rte": Benchmark(("premise", "hypothesis")),
    "wic": Benchmark(("word", "sentence1", "sentence2")),
    "wsc.fixed": Benchmark(("span1_text", "span2_text", "text")),
}
CODE_X_GLUE = {
    "cc_defect_detection": Benchmark(("func",), "target"),
    "cc_clone_detection_big_clone_bench": Benchmark(("func1", "func2"), metric="macro_f1"),
    "cc_code_refinement": Benchmark(("buggy",), "fixed"),
    "cc_code_to_code_trans": Benchmark(("java",), "cs"),
    "ct_code_to_text": Benchmark(("code",), "docstring"),
    "tc_text_to_code": Benchmark(("nl",), "code"),
}
SCROLLS = (
    "gov_report", "summ_screen_fd", "qmsum", "narrative_qa", "qasper", "quality", "contract_nli",
)  # fmt: skip


def place(name: str) -> tuple[str, str | None, dict[str, str] | None]:
    """Repository, configuration and, of SCROLLS, its files: of NAME or NAME:CONFIG on the Hub."""
    name, _, config = name.partition(":")
    name = REPOSITORIES.get(name, f"google/{name}" if name.startswith(CODE) else name)
    files = None
    if name == REPOSITORIES["scrolls"]:
        packed = f"hf://datasets/{name}/{config}.zip"
        files = {s: f"zip://{config}/{s}.jsonl::{packed}" for s in ("train", "validation")}
    return name, config or None, files


def known(name: str) -> Benchmark | None:
    """What is known of NAME or NAME:CONFIG on the Hub."""
    repository, config, _ = place(name)
    if repository == REPOSITORIES["glue"]:
        return GLUE.get(config or "")
    if repository == REPOSITORIES["super_glue"]:
        return SUPER_GLUE.get(config or "")
    if repository == REPOSITORIES["scrolls"] and config in SCROLLS:
        return Benchmark(("input",), "output")
    return CODE_X_GLUE.get(repository.removeprefix(f"google/{CODE}"))
