"""Bundled recipes and calibrations belong to weights, not to names."""

from __future__ import annotations

import pytest
from safetensors.torch import save_file

import ppexport
from ppexport.cli.export import NOTES
from ppexport.errors import InputError
from ppexport.networks.card import models_folder
from ppexport.networks.load import card_of
from ppexport.quantize.recipe import Recipe, calibration_for, check_calibration, recipe_for, write_recipe


def tuned(tmp_path, scale):
    """The bundled x2 or x4 with one weight changed: a user's checkpoint of the same architecture."""
    state = ppexport.load_network(f"pp_atd_light_x{scale}").state_dict()
    state["norm.bias"] = state["norm.bias"] + 1e-3
    save_file(state, tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors"


@pytest.mark.parametrize("by_name", [True, False])
def test_a_users_checkpoint_never_gets_what_was_measured_for_the_bundled_weights(tmp_path, by_name):
    checkpoint = tuned(tmp_path, 4)
    chosen = {"name": "pp_atd_light_x4"} if by_name else {"arch": "pp_atd_light", "scale": 4}
    card = card_of(ppexport.load_network(**chosen, checkpoint=checkpoint))
    assert card.name == "pp_atd_light_x4", "the name that chose the bundled files"
    assert (card.licence, card.training) == ("as the checkpoint's", {})
    assert recipe_for(card, None) == (Recipe(), "default")
    with pytest.raises(InputError, match=r"no calibration is bundled for these weights.*`ppexport calibrate`.*--cali"):
        calibration_for(card, None)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_bundled_weights_get_their_recipe_and_calibration_under_any_name(scale):
    card = card_of(ppexport.load_network(f"pp_atd_light_x{scale}"))
    weights = models_folder() / card.name / card.weights.file
    other = card_of(ppexport.load_network(arch="pp_atd_light", scale=scale, checkpoint=weights))
    for one in (card, other.model_copy(update={"name": "mine"})):
        recipe, origin = recipe_for(one, None)
        assert (recipe.weights_sha256, origin) == (card.weights.sha256, "bundled")
        check_calibration(calibration_for(one, None), card)
    # It was measured before colour centres could be chosen: with the fixed ones, and no others.
    adaptive = card.model_copy(update={"options": card.options.model_copy(update={"centres": "adaptive"})})
    with pytest.raises(InputError, match="other weights or options"):
        check_calibration(calibration_for(card, None), adaptive)


def test_a_recipe_of_other_weights_is_taken_on_request_and_said(tmp_path):
    card = card_of(ppexport.load_network("pp_atd_light_x2"))
    for digest, origin in (
        (None, "given"),
        (card.weights.sha256, "given"),
        ("0" * 64, "given, found for other weights"),
    ):
        write_recipe(tmp_path / "r.yaml", Recipe(weights_sha256=digest))
        assert recipe_for(card, tmp_path / "r.yaml")[1] == origin
        assert (origin in NOTES) == (digest == "0" * 64)
