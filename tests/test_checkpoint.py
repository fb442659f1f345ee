"""Weights files: the good ones load, every bad one gives one sentence that names the file and the key."""

from __future__ import annotations

import argparse
import pickle
import re
import tarfile
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_network
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

import ppexport
from ppexport.errors import CardError, CheckpointError, InputError, UnavailableError, first_line
from ppexport.networks.architecture import find_architecture
from ppexport.networks.card import effective_card
from ppexport.networks.checkpoint import read_state
from ppexport.networks.swinir.swinir_light import border_mask
from ppexport.parity.columns import load_column
from ppexport.quantize.calibration import load_calibration

STATE = golden_network("atd_light_x2_trained", "atd_light").state_dict()


def load(path, scale=2, arch="pp_atd_light"):
    return ppexport.load_network(arch=arch, scale=scale, checkpoint=path)


@pytest.mark.parametrize("wrapper", ["params_ema", "params", None])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_published_checkpoints_load(tmp_path, wrapper, suffix):
    path = tmp_path / f"net{suffix}"
    other = {key: torch.zeros_like(value) for key, value in STATE.items()}
    wrapped = {"params_ema": {"params": other, "params_ema": STATE}, "params": {"params": STATE}, None: STATE}
    torch.save(wrapped[wrapper], path)
    network = load(path)
    assert not network.training
    assert all(torch.equal(value, STATE[key]) for key, value in network.state_dict().items())


def under(*wrappers, prefix="", **beside):
    """STATE inside *wrappers*, the outermost first, its keys behind *prefix*, with training state *beside* it."""
    state = {prefix + key: value for key, value in STATE.items()}
    for wrapper in reversed(wrappers):
        state = {wrapper: state, **beside}
    return state


@pytest.mark.parametrize(
    "content",
    [
        under("state_dict"),
        under("state_dict", epoch=3, optimizer={"state": {}, "param_groups": [{"lr": 0.1}]}),
        under("model"),
        under("net_g"),
        under("generator_ema"),
        under("model", "state_dict"),
        under(prefix="module."),
        under("params", prefix="module."),
        under("state_dict", prefix="generator."),
        under("model", prefix="module._orig_mod."),
    ],
)
def test_wrappers_and_prefixes_are_taken_off(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    state = read_state(tmp_path / "net.pth")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(value, STATE[key]) for key, value in state.items())


def test_a_prefix_of_some_keys_only_is_no_wrapper(tmp_path):
    torch.save({**STATE, "module.norm.weight": STATE["norm.weight"]}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"does not know: 'module\.norm\.weight'"):
        load(tmp_path / "net.pth")


def test_a_dict_that_holds_itself_ends(tmp_path):
    endless = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="entry 'model' is not a tensor"):
        load(tmp_path / "net.pth")


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".PTH", ".Pt", ".CKPT", ".SAFETENSORS"])
def test_suffixes_in_any_case(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_file(STATE, path) if suffix == ".SAFETENSORS" else torch.save(STATE, path)
    assert read_state(path).keys() == STATE.keys()


ADVICE = re.compile(r"weights_only|allow_pickle|trust|two options|\x1b|\x9b", re.IGNORECASE)


def make_refused(tmp_path):
    """Files that PyTorch refuses, with the advice to load them without care: {name: what is said}."""
    torch.save(golden_network("atd_light_x2_trained", "atd_light"), tmp_path / "whole.pth")
    torch.save({"params": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    (tmp_path / "protocol2.pth").write_bytes(pickle.dumps({"a": argparse.Namespace()}, protocol=2))
    (tmp_path / "protocol5.pth").write_bytes(pickle.dumps({"a": argparse.Namespace()}, protocol=5))
    (tmp_path / "junk.bin").write_bytes(b"\x1b[31mhello")
    with tarfile.open(tmp_path / "tar.pth", "w") as archive:
        archive.add(__file__, "file")
    (tmp_path / "red\x1b[31m.pth").write_bytes(b"hello")
    save = r"save the tensors alone where it was made, with torch\.save\(network\.state_dict\(\), FILE\)"
    return {
        "whole.pth": rf"objects of ppexport\.networks\.atd\.atd_light\.ATDLight .*{save}",
        "args.pth": rf"objects of argparse\.Namespace .*{save}",
        "script.pt": rf"a TorchScript archive.*{save}",
        "protocol2.pth": rf"objects of argparse\.Namespace .*{save}",
        **dict.fromkeys(
            ["protocol5.pth", "junk.bin", "tar.pth", "red\x1b[31m.pth"], "is damaged or is no weights file"
        ),
    }


def test_advice_to_load_unsafely_is_never_passed_on(tmp_path, recwarn):
    for name, message in make_refused(tmp_path).items():
        with pytest.raises(CheckpointError, match=message) as error:
            load(tmp_path / name)
        assert not ADVICE.search(str(error.value)), name
        assert "\n" not in str(error.value)
    assert [str(warning.message) for warning in recwarn if ADVICE.search(str(warning.message))] == []
    assert not any("TorchScript" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("read", [load_calibration, load_column])
def test_advice_of_numpy_is_not_passed_on_either(tmp_path, read):
    (tmp_path / "a.npz").write_bytes(b"hello")
    np.savez(tmp_path / "b.npz", about=np.array([{}], dtype=object))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(InputError, match="could only be read unsafely, which ppexport never does") as error:
            read(tmp_path / name)
        assert not ADVICE.search(str(error.value))


def test_no_error_hands_codes_to_the_terminal():
    text = "red\x1b[31m \x9b2J\x1b]0;title\x07plain\u202e\r"
    assert str(InputError(text)) == "red plain"
    assert first_line(ValueError(f"\x1b[1m\n{text}\nmore")) == "red plain"
    assert first_line(ValueError("\x1b[1m")) == "ValueError"


def test_half_precision_weights_become_float32(tmp_path):
    save_file({k: v.half() if v.is_floating_point() else v for k, v in STATE.items()}, tmp_path / "h.safetensors")
    network = load(tmp_path / "h.safetensors")
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def broken(tmp_path, **changes):
    state = {**STATE, **changes}
    path = tmp_path / "bad.safetensors"
    save_file({k: v for k, v in state.items() if v is not None}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.weight": None}, "no key 'norm.weight'"),
        ({"extra.weight": torch.zeros(1)}, "does not know: 'extra.weight'"),
        ({"norm.weight": torch.zeros(47)}, r"'norm.weight' has shape \(47,\)"),
        ({"norm.weight": torch.full((48,), float("nan"))}, "'norm.weight' holds NaN"),
        ({"norm.weight": torch.zeros(48, dtype=torch.int64)}, "'norm.weight' has type"),
        ({"relative_position_index_SA": torch.zeros(256, 256, dtype=torch.int64)}, "relative_position_index_SA"),
        ({"upsample.0.weight": torch.zeros(48, 48, 3, 3)}, "x4, not x2"),
        ({"upsample.0.weight": torch.zeros(13, 48, 3, 3)}, "belongs to a scale"),
    ],
)
def test_wrong_states_name_file_and_key(tmp_path, changes, message):
    path = broken(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert "bad.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_scale_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="x2, not x3"):
        load(GOLDEN / "atd_light_x2_trained.safetensors", scale=3)


SWINIR = load_file(GOLDEN / "swinir_light_x2_random.safetensors")
FLOATS = {key: value for key, value in SWINIR.items() if value.is_floating_point()}
MASK = {f"layers.{i}.residual_group.blocks.1.attn_mask": border_mask(64, 8) for i in range(4)}
DAMAGED = {**SWINIR, "norm.weight": torch.full((60,), float("nan"))}


def narrowed(kind):
    return {key: value.to(kind) if value.is_floating_point() else value for key, value in SWINIR.items()}


def behind(*prefixes):
    return {"".join(prefixes) + key: value for key, value in SWINIR.items()}


ACCEPTED = {
    "flat.pth": SWINIR,
    "flat.safetensors": SWINIR,
    "flat.bin": SWINIR,
    "masks.pth": {**SWINIR, **MASK},
    "params.pt": {"params": SWINIR},
    "params_ema.pth": {"params": DAMAGED, "params_ema": SWINIR},
    "state_dict.ckpt": {"state_dict": SWINIR, "epoch": 3, "optimizer": {"param_groups": [{"lr": 0.1}]}},
    "model.pth": {"model": SWINIR, "iteration": 7},
    "net_g.pth": {"net_g": SWINIR},
    "generator_ema.pth": {"generator_ema": SWINIR},
    "nested.ckpt": {"model": {"state_dict": SWINIR}},
    "module.pth": behind("module."),
    "generator.safetensors": behind("generator."),
    "compiled.pth": {"params": behind("_orig_mod.")},
    "both.pth": behind("module.", "_orig_mod."),
    "half.pth": narrowed(torch.float16),
    "brain.safetensors": narrowed(torch.bfloat16),
}


def save(content, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_file_alone_tells_its_network(name, tmp_path, recwarn):
    network = ppexport.load_network(checkpoint=save(ACCEPTED[name], tmp_path / name))
    assert (network.arch, network.scale, network.training) == ("swinir_light", 2, False)
    kind = {"half.pth": torch.float16, "brain.safetensors": torch.bfloat16}.get(name, torch.float32)
    state = network.state_dict()
    assert state.keys() == SWINIR.keys()
    assert all(torch.equal(state[key], value.to(kind).float()) for key, value in FLOATS.items())
    said = [str(warning.message) for warning in recwarn if "become float32" in str(warning.message)]
    assert len(said) == (kind != torch.float32)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("atd_light_x4_random.safetensors", ("atd_light", 4)),
        ("atd_light_v2_x2_random.safetensors", ("atd_light_v2", 2)),
        ("CAMixerSR_S.pth", ("camixersr", 4)),
    ],
)
def test_every_network_is_told_by_its_weights(name, found):
    network = ppexport.load_network(checkpoint=GOLDEN / name)
    assert (network.arch, network.scale) == found


REFUSED = {
    "nan.pth": (DAMAGED, "'norm.weight' holds NaN"),
    "foreign.pth": (
        {"conv.weight": torch.zeros(3, 3, 3, 3)},
        "no network that is known here.*is missing",
    ),
    "scale.pth": ({**SWINIR, "upsample.0.weight": torch.zeros(13, 60, 3, 3)}, "belongs to a scale"),
    "mask.pth": ({**SWINIR, **{key: mask + 1 for key, mask in MASK.items()}}, "attn_mask' is not the mask"),
    "index.pth": ({k: v if k in FLOATS else v.flip(0) for k, v in SWINIR.items()}, "is not the 8x8 window index"),
    "whole.pth": (torch.nn.Linear(2, 2), r"save the tensors alone .*torch\.save"),
    "script.pt": (None, "TorchScript archive.*save the tensors alone"),
    "cut.pth": (b"", "damaged or is no weights file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_alone_is_refused_with_one_sentence(name, tmp_path):
    content, message = REFUSED[name]
    if content is None:
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / name))
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(save(SWINIR, tmp_path / "all.pth").read_bytes()[:100_000])
    else:
        save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=message) as error:
        ppexport.load_network(checkpoint=tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert not ADVICE.search(str(error.value))


def test_another_network_or_scale_than_the_one_named_is_refused():
    path = GOLDEN / "swinir_light_x2_random.safetensors"
    with pytest.raises(CheckpointError, match="weights of swinir_light, not of atd_light: say --arch swinir_light"):
        ppexport.load_network(arch="atd_light", scale=2, checkpoint=path)
    with pytest.raises(CheckpointError, match="for x2, not x4"):
        ppexport.load_network(scale=4, checkpoint=path)


class Bomb:
    """Runs code when it is unpickled without care."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_hostile_pickles_run_nothing(tmp_path):
    victim = tmp_path / "victim"
    for name, save in (("zip.pth", torch.save), ("raw.pth", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        save({"params": Bomb(victim)}, tmp_path / name)
        with pytest.raises(CheckpointError, match=name):
            load(tmp_path / name)
    assert not victim.exists()


@pytest.mark.parametrize("keep", [0, 7, 1000, 2_000_000])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(tmp_path, keep, suffix):
    whole = tmp_path / f"whole{suffix}"
    save_file(STATE, whole) if suffix == ".safetensors" else torch.save(STATE, whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"cut{suffix}"):
        load(cut)


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"params": {"a": 3}}, tmp_path / "number.pth")
    for name in ("notes.txt", "list.pth", "number.pth", "absent.pth"):
        with pytest.raises(CheckpointError, match=name):
            load(tmp_path / name)


def test_options_override_the_card():
    network = ppexport.load_network("pp_atd_light_x2", colors=6, window=4, csmf=False, compensation="zero")
    expected = {"colors": 6, "window": 4, "csmf": False, "centres": "fixed", "compensation": "zero"}
    assert network.options.model_dump() == expected
    assert network.card.hash() != ppexport.load_network("pp_atd_light_x2").card.hash()


class AnyOptions(BaseModel):
    """One option of every kind that a network may have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = 1.0
    steps: Literal[2, 4] | None = 4
    fused: bool = False
    word: str = "a"
    centres: tuple[tuple[int, ...], ...] = ()


def test_texts_become_what_a_networks_own_options_are(monkeypatch):
    monkeypatch.setattr(type(find_architecture("camixersr")), "options", lambda self: AnyOptions)

    def options(**given):
        return effective_card(None, "camixersr", 4, given)[0].options

    assert options() == AnyOptions()
    given = {"share": "0.5", "steps": "2", "fused": "true", "word": "10", "centres": "[[1, 2], [3]]"}
    assert options(**given) == AnyOptions(share=0.5, steps=2, fused=True, word="10", centres=((1, 2), (3,)))
    assert options(steps="null", fused="no") == AnyOptions(steps=None)
    for bad in ({"share": "true"}, {"steps": "3"}, {"steps": "[" * 5000}, {"centres": "1"}, {"fused": "2"}):
        with pytest.raises(CardError, match=f"^cannot use {next(iter(bad))}"):
            options(**bad)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "nonesuch"}, CardError, "bundled: .*pp_atd_light_x2"),
        ({"name": "pp_atd_light_x2", "scale": 4}, InputError, "has scale 2"),
        ({"name": "pp_atd_light_x2", "colors": 99}, CardError, "colors"),
        ({"name": "pp_atd_light_x2", "compensation": "half"}, CardError, "compensation"),
        ({"name": "pp_atd_light_x2", "size": 3}, InputError, "no option 'size': its options are colors, window"),
        ({"arch": "pp_atd_light", "scale": 2}, InputError, "checkpoint"),
        ({"arch": "swin", "scale": 2}, InputError, "arch"),
        ({"arch": "atd_light", "scale": 2, "colors": 8, "checkpoint": "x.pth"}, InputError, "colors"),
        ({}, InputError, "arch"),
    ],
)
def test_bad_requests(arguments, error, message):
    with pytest.raises(error, match=message):
        ppexport.load_network(**arguments)


def card_folder(tmp_path, text):
    (tmp_path / "card.yaml").write_text(text)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "summary"),
        ("[1, 2]", "mapping"),
        ("a: [", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        (
            "{name: x, summary: s, arch: atd_light, scale: 2, licence: MIT, "
            "weights: {file: ../../etc/passwd, sha256: '" + "0" * 64 + "'}}",
            "plain file name",
        ),
    ],
)
def test_bad_cards(tmp_path, text, message):
    with pytest.raises(CardError, match=message):
        ppexport.load_network(card_folder(tmp_path, text))


def test_a_card_notices_changed_weights(tmp_path):
    (tmp_path / "w.safetensors").write_bytes((GOLDEN / "atd_light_x2_trained.safetensors").read_bytes())
    weights = f"{{file: w.safetensors, sha256: '{'0' * 64}'}}"
    text = f"{{name: x, summary: s, arch: pp_atd_light, scale: 2, licence: MIT, weights: {weights}}}"
    with pytest.raises(CheckpointError, match="sha256"):
        ppexport.load_network(card_folder(tmp_path, text))


@pytest.mark.parametrize("name", ["atd_light_x2", "atd_light_x3", "atd_light_x4"])
def test_a_card_without_weights_says_where_a_file_goes(name):
    example = f"ppexport export {name} --checkpoint FILE.pth -o OUT"
    with pytest.raises(UnavailableError, match=f"no weights are bundled for {name}: .*{example}") as failure:
        ppexport.load_network(name)
    assert "\n" not in str(failure.value)
