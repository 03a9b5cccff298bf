"""For transformers: loaded, generated, padded, trained, saved; what is cached is what is not."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from archsearch import build, hub, reference
from archsearch.blocks import Mixer
from archsearch.ends import Classes, Ends, Tokens, language
from archsearch.errors import UserError
from archsearch.export import export
from archsearch.loading import load_spec
from archsearch.model import Model
from archsearch.origin import Origin
from archsearch.spec import ModelSpec

transformers = pytest.importorskip("transformers", reason="make parity installs it")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

VOCAB = 13
STREAMING = [name for name, cls in Mixer.members.items() if cls.causal]
Loader = Callable[[Path], Any]


def spec_of(mixer: str) -> ModelSpec:
    topology = {"type": "parallel", "branches": [mixer, "short_conv"]}
    return ModelSpec.model_validate({"dim": 16, "layers": 2, "topology": topology})


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    """from_pretrained, with the copies of code that it makes in a folder of the tests."""
    auto, dynamic = (transformers.AutoModelForCausalLM, transformers.dynamic_module_utils)
    copies = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(copies))
        patch.syspath_prepend(copies)
        yield lambda path: auto.from_pretrained(path, trust_remote_code=True)


def exported(spec: ModelSpec, folder: Path, vocab: int = VOCAB) -> Model:
    """The model whose folder is written, no two weights alike."""
    torch.manual_seed(0)
    model = build(spec, vocab=vocab).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    hub.write(folder, model, Origin(spec, language(vocab), None, "a test"))
    return model


def settings(**more: Any) -> dict[str, Any]:
    return {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0} | more


def check_generation(model: Model, other: Any) -> None:
    """Same bits; cached is uncached, greedy and with beams; padding on the left changes nothing."""
    tokens = torch.randint(1, VOCAB, (3, 9))
    with torch.no_grad():
        assert torch.equal(other(tokens).logits, model(tokens)[0])
    for beams in (1, 3):
        cached, whole = (
            other.generate(tokens, **settings(num_beams=beams, use_cache=use_cache))
            for use_cache in (True, False)
        )
        assert torch.equal(cached, whole), f"{beams} beams"
    mask = torch.ones_like(tokens)
    for row, pads in enumerate((4, 0, 4)):
        mask[row, :pads] = 0
    padded = tokens.masked_fill(mask == 0, 0)
    for beams in (1, 2):
        together = other.generate(padded, attention_mask=mask, **settings(num_beams=beams))
        for row, pads in enumerate((4, 0, 4)):
            alone = other.generate(tokens[row : row + 1, pads:], **settings(num_beams=beams))
            assert torch.equal(together[row, pads:], alone[0]), f"row {row}, {beams} beams"


@pytest.mark.parametrize("mixer", STREAMING)
def test_every_mixer_generates(mixer: str, tmp_path: Path, load: Loader) -> None:
    model = exported(spec_of(mixer), tmp_path / "m")
    check_generation(model, load(tmp_path / "m"))


def test_every_fusion_generates(fusion: ModelSpec, tmp_path: Path, load: Loader) -> None:
    model = exported(fusion, tmp_path / "m")
    check_generation(model, load(tmp_path / "m"))


def test_save_pretrained_goes_there_and_back(tmp_path: Path, load: Loader) -> None:
    """With what was learned since; and transformers' copy has all that it needs."""
    exported(spec_of("retention"), tmp_path / "m")
    model = load(tmp_path / "m")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    tokens = torch.randint(VOCAB, (2, 9))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_weights_that_a_file_lacks_are_born_as_here(tmp_path: Path, load: Loader) -> None:
    """A constant is in no file, and has its value; so has a model of a configuration alone."""
    from safetensors.torch import load_file, save_file

    exported(spec_of("retention"), tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    norm = next(name for name in weights if "norm" in name)
    del weights[norm]
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    model = load(tmp_path / "m")
    assert torch.equal(model.state_dict()[norm], torch.ones(16))
    fresh = transformers.AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)
    for name, constant in model.constants.items():
        assert torch.equal(dict(model.model.named_buffers())[name], constant)
        assert torch.equal(dict(fresh.model.named_buffers())[name], constant)
    assert all(p.isfinite().all() for p in fresh.parameters())


def test_the_loss_is_of_what_is_labelled(tmp_path: Path, load: Loader) -> None:
    """Padding on the right is read for nothing; where states are wanted it is refused."""
    model = exported(spec_of("mamba"), tmp_path / "m")
    other = load(tmp_path / "m")
    tokens = torch.randint(1, VOCAB, (2, 9))
    mask = torch.ones_like(tokens)
    mask[0, 6:] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    padded = tokens.masked_fill(mask == 0, 0)
    loss = other(padded, attention_mask=mask, labels=labels).loss
    logits, _ = model(padded)
    flat = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    assert torch.equal(loss, torch.nn.functional.cross_entropy(*flat))
    assert other(padded, attention_mask=mask).cache_params is None
    with pytest.raises(ValueError, match="padding on the right: pad on the left"):
        other.generate(padded, attention_mask=mask, **settings())
    mask[0] = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="padding between tokens"):
        other(padded, attention_mask=mask)
    mask[0] = 0
    with pytest.raises(ValueError, match="a row of padding alone"):
        other(padded, attention_mask=mask)


def test_trainer_trains_it(tmp_path: Path, load: Loader) -> None:
    pytest.importorskip("accelerate", reason="Trainer's own need")
    exported(spec_of("retention"), tmp_path / "m")
    model = load(tmp_path / "m")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [{"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, 3, 4, 5]} for _ in range(4)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert trainer.evaluate()["eval_loss"] > 0


def test_bytes_have_a_tokenizer(tmp_path: Path, load: Loader) -> None:
    exported(spec_of("retention"), tmp_path / "m", vocab=256)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in ("import os\n", "naïve — 日本", bytes(range(32)).decode("latin-1"), " a  b "):
        assert tokenizer(text)["input_ids"] == [*text.encode()]
        assert tokenizer.decode([*text.encode()]) == text
    assert {*hub.byte_characters().values()} == {*range(256)}


def test_the_folder_has_what_a_stranger_needs(tmp_path: Path) -> None:
    """Loaded by transformers in a fresh process, by export itself."""
    (tmp_path / "s.yaml").write_text(reference("retnet", dim=8, layers=1).to_yaml())
    folder = export(tmp_path / "s.yaml", tmp_path / "m", format="hf")
    config = json.loads((folder / "config.json").read_text())
    assert load_spec(folder / "architecture.yaml").hash() == config["hash"]
    assert ModelSpec.model_validate(config["spec"]).hash() == config["hash"]
    assert "Apache License" in (folder / "LICENSE").read_text()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "load no such folder from somebody whom you do not trust" in card
    assert not any(path.is_dir() for path in folder.iterdir())
    for path in folder.glob("*.py"):
        assert "archsearch." not in path.read_text() or path.name == "modeling.py", path


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    ends = Ends(Tokens(9), Classes(3))
    with pytest.raises(UserError, match=r"gives logits \(B, 3\); hf is for models that predict"):
        hub.require(Origin(spec_of("retention"), ends, None, "a test"))
    both = spec_of("retention").model_copy(update={"causal": False})
    with pytest.raises(UserError, match="and sees the future; hf is for models"):
        hub.require(Origin(both, language(9), None, "a test"))
