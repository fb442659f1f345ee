"""Evaluation: pairs of files, the field's metrics, the folder's mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import photo
from PIL import Image
from shared import shared_folder
from test_upscale import artifact as fake_artifact

from ppexport.device.picture import psnr_y, ssim_y
from ppexport.errors import InputError
from ppexport.imaging.bicubic import enlarge_bicubic, resize_bicubic
from ppexport.parity.evaluation import evaluate, find_pairs, network_upscaler


def save(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)


def bicubic(lr):
    return enlarge_bicubic(lr, 2)


def test_lr_is_made_where_it_is_missing(tmp_path):
    hr = photo(61, 40)
    save(tmp_path / "hr" / "a.png", hr)
    save(tmp_path / "lr" / "ax2.png", resize_bicubic(hr, 2))
    made = evaluate(bicubic, find_pairs(tmp_path / "hr", None, 2), 2)
    given = evaluate(bicubic, find_pairs(tmp_path / "hr", tmp_path / "lr", 2), 2)
    assert made.scores == given.scores
    (score,) = made.scores
    expected = enlarge_bicubic(resize_bicubic(hr, 2), 2)
    assert score.psnr_y == score.bicubic_psnr_y == psnr_y(expected, hr[:60], 2)
    assert score.ssim_y == ssim_y(expected, hr[:60], 2)


def test_marked_files_may_share_a_folder(tmp_path):
    for name in ("img_001", "img_002"):
        save(tmp_path / f"{name}_SRF_2_HR.png", photo(40, 40))
        save(tmp_path / f"{name}_SRF_2_LR.png", resize_bicubic(photo(40, 40), 2))
    pairs = find_pairs(tmp_path, tmp_path, 2)
    assert [p.name for p in pairs] == ["img_001", "img_002"]
    assert pairs[0].lr.name == "img_001_SRF_2_LR.png"
    assert len(find_pairs(tmp_path, None, 2)) == 2
    result = evaluate(bicubic, pairs, 2)
    assert result.mean.psnr_y == pytest.approx(np.mean([s.psnr_y for s in result.scores]))
    assert result.to_dict()["mean"]["name"] == "mean"


def test_names_of_other_scales_do_not_mix(tmp_path):
    hr = photo(48, 48)
    for name in ("max2", "0801"):
        save(tmp_path / "hr" / f"{name}.png", hr)
    save(tmp_path / "lr" / "max2.png", resize_bicubic(hr, 2))
    for scale in (2, 4):
        save(tmp_path / "lr" / f"0801x{scale}.png", resize_bicubic(hr, scale))
    assert [p.lr.name for p in find_pairs(tmp_path / "hr", tmp_path / "lr", 2)] == ["0801x2.png", "max2.png"]


def test_a_network_is_evaluated_on_whole_pictures(tmp_path, x2):
    save(tmp_path / "a.png", photo(52, 70))
    (score,) = evaluate(network_upscaler(x2), find_pairs(tmp_path, None, 2), 2).scores
    assert score.psnr_y > score.bicubic_psnr_y + 0.5


def test_a_network_that_overflows_has_no_figures(tmp_path, x2):
    save(tmp_path / "a.png", photo(52, 70))
    x2.conv_first.weight *= 1e38
    with pytest.raises(InputError, match="NaN or infinite values"):
        evaluate(network_upscaler(x2), find_pairs(tmp_path, None, 2), 2)


def test_bad_folders(tmp_path):
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    with pytest.raises(InputError, match="is not a folder"):
        find_pairs(hr, None, 2)
    hr.mkdir()
    with pytest.raises(InputError, match="no PNG"):
        find_pairs(hr, None, 2)
    save(hr / "a.png", photo(40, 40))
    save(lr / "b.png", photo(20, 20))
    with pytest.raises(InputError, match="no LR picture for a.png"):
        find_pairs(hr, lr, 2)
    save(lr / "a.png", photo(20, 21))
    with pytest.raises(InputError, match="not the size"):
        evaluate(bicubic, find_pairs(hr, lr, 2), 2)
    save(hr / "a.jpg", photo(40, 40))
    with pytest.raises(InputError, match="two pictures"):
        find_pairs(hr, None, 2)
    save(tmp_path / "small" / "a.png", photo(14, 40))
    with pytest.raises(InputError, match="too small"):
        evaluate(bicubic, find_pairs(tmp_path / "small", None, 2), 2)


def test_set5_bicubic_is_the_published_baseline():
    folder = shared_folder("images", "set5", "image_SRF_2")
    result = evaluate(bicubic, find_pairs(folder, folder, 2), 2)
    assert result.mean.psnr_y == pytest.approx(33.66, abs=0.02)
    assert evaluate(bicubic, find_pairs(folder, None, 2), 2) == result


@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [("onnx", "fp16", "fp16-weights"), ("onnx", "int8", "int8"), ("coreml", "fp16", "fp16")],
)
def test_figures_of_a_runner_that_computes_in_fp32_say_so(backend, precision, expected):
    from ppexport.report.records import artifact_key

    manifest = replace(fake_artifact((64, 64), 2).manifest, backend=backend, precision=precision)
    assert artifact_key(manifest) == f"{backend}-{expected}-portable-full-64x64"


def test_figures_are_recorded_beside_the_card(tmp_path):
    from ppexport.networks.card import make_card
    from ppexport.report.records import read_numerics, record_evaluation

    save(tmp_path / "hr" / "a.png", photo(52, 70))
    result = evaluate(bicubic, find_pairs(tmp_path / "hr", None, 2), 2)
    weights = {"file": "w", "sha256": "0" * 64}
    fields = {"summary": "", "arch": "atd_light", "scale": 2, "licence": "MIT", "published": {"set5": 38.29}}
    card = make_card(name="m", weights=weights, **fields)
    record_evaluation(tmp_path, "set5", card, result)
    record_evaluation(tmp_path, "mine", card, result)
    record_evaluation(tmp_path, "set5", card, result, "onnx-int8-portable-full-64x64")
    figures = read_numerics(tmp_path)["evaluation"]
    assert set(figures) == {"set5", "mine"}
    assert set(figures["set5"]) == {"pytorch-fp32", "onnx-int8-portable-full-64x64"}
    network = figures["set5"]["pytorch-fp32"]
    assert network["psnr_y"] == round(result.mean.psnr_y, 3)
    assert network["published_psnr_y"] == 38.29
    assert figures["mine"]["pytorch-fp32"]["pictures"] == 1
    with pytest.raises(InputError, match="data set"):
        record_evaluation(tmp_path, "../x", card, result)
    (tmp_path / "numerics.yaml").write_text("set5: {psnr_y: 3.0}\n")
    with pytest.raises(InputError, match="does not hold evaluation and parity"):
        read_numerics(tmp_path)
    (tmp_path / "numerics.yaml").write_text("[")
    with pytest.raises(InputError, match="cannot be read"):
        record_evaluation(tmp_path, "set5", card, result)
