import re

import pytest
import yaml

from epg.config.objectives import KINDS
from epg.config.recipe import merge, read_recipe, recipe_names, run_config, stages_of
from epg.config.settings import RunConfig, parse
from epg.config.validation import check, checked, problems
from epg.config.views import AffineViewsConfig, MocoViewsConfig
from epg.cost.network import epg_cost
from epg.errors import UserError
from tests.helpers import tiny_config, tiny_content

STAGES_OF_ALL = [(name, stage) for name in recipe_names() for stage in stages_of(name)]
ABLATION = "imagenet256-b-ablation"
PAPER = [*(f"imagenet256-{model}" for model in ("s", "b", "l", "xl", "xxl", "g")), "imagenet512-l"]


# Recipes --------------------------------------------------------------------------------------------------------------


def test_the_recipes_of_the_paper_and_small_ones_exist():
    names = recipe_names()
    assert {name for name in names if name.startswith(("imagenet256", "imagenet512"))} == {*PAPER, ABLATION}
    assert {"digits", "small", "cifar10", "imagenet64"} <= set(names)
    assert not any(name.startswith("_") for name in names)


@pytest.mark.parametrize(("recipe", "stage"), STAGES_OF_ALL)
def test_every_recipe_can_run(recipe, stage):
    config = run_config(recipe, stage)
    assert config.stage == stage
    assert config.recipe == recipe
    assert list(problems(config)) == []
    assert check(config) is config


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_has_all_stages_and_a_description(recipe):
    papers = (*PAPER, ABLATION, "flow", "jit")  # runs of the paper, and what others train such networks with
    stages = set(KINDS) - ({"onestep"} if recipe in papers else set())
    assert set(stages_of(recipe)) == stages
    assert read_recipe(recipe)["description"]


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_stages_of_a_recipe_fit_together(recipe):
    """What `handover` compares."""
    configs = [run_config(recipe, stage) for stage in stages_of(recipe)]
    for config in configs[1:]:
        assert (config.model, config.data, config.noise) == (configs[0].model, configs[0].data, configs[0].noise)


@pytest.mark.parametrize("recipe", PAPER)
def test_pretraining_settings_of_table_9(recipe):
    config = run_config(recipe, "pretraining")
    assert (config.training.batch_size, config.training.steps) == (1024, 600_000)
    assert (config.optimizer.lr, config.optimizer.lr_batch_size) == (6e-4, 1024)
    assert (config.optimizer.betas, config.optimizer.warmup_steps) == ((0.9, 0.999), 10_000)
    assert config.optimizer.schedule == "cosine"
    assert config.optimizer.clip is None
    assert config.optimizer.weight_decay == (0.05 if recipe.endswith("-l") else 0.03)
    o = config.objective
    assert (o.momentum, o.contrastive_temperature, o.tau1, o.tau2, o.s0, o.s1) == (0.99, 0.2, 0.1, 0.2, 20, 1280)
    assert o.flip
    assert o.views == MocoViewsConfig()


@pytest.mark.parametrize("recipe", PAPER)
def test_diffusion_settings_of_table_10(recipe):
    config = run_config(recipe, "diffusion")
    assert config.training.batch_size == 1024
    assert config.training.steps in (1_000_000, 2_000_000)
    assert config.training.ema == [0.9999]
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.9, 0.999), 0.01)
    assert (optimizer.warmup_steps, optimizer.schedule, optimizer.clip) == (10_000, "cosine", 0.5)
    o = config.objective
    assert (o.mean, o.std, o.levels, o.label_dropout, o.flip) == (-1.2, 1.6, 1280, 0.1, True)
    assert (config.sampling.sampler, config.sampling.steps, config.sampling.interval) == ("heun", 32, (0.19, 1.61))


@pytest.mark.parametrize("recipe", PAPER)
def test_consistency_settings_of_table_11(recipe):
    config = run_config(recipe, "consistency")
    assert (config.training.batch_size, config.training.steps, config.training.ema) == (1024, 700_000, [0.9999])
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.9, 0.99), 0.01)
    assert optimizer.lr_steps == [(400_000, 3e-5), (500_000, 8e-6)]
    assert optimizer.clip is None
    o = config.objective
    assert (o.mean, o.std, o.q, o.k, o.b, o.delta, o.d) == (-0.4, 1.6, 2, 8, 1, 1, 100_000)
    assert (o.c, o.auxiliary_temperature, o.auxiliary_weight, o.dropout) == (0.06, 0.1, 1.0, 0.5)
    assert config.sampling.sampler == "one_step"


@pytest.mark.parametrize("recipe", PAPER)
def test_imagenet_networks_have_256_patches(recipe):
    config = run_config(recipe, "diffusion")
    size = int(recipe.removeprefix("imagenet").split("-")[0])
    assert (config.data.image_size, config.model.patch_size) == (size, size // 16)
    assert config.model.num_classes == 1000
    assert config.shift == size / 64
    assert (config.noise.sigma_min, config.noise.sigma_max, config.noise.rho) == (0.002, 80, 7)
    assert (config.noise.sigma_data, config.data.normalization) == (0.5, "imagenet")


def test_lengths_of_the_ablations():
    """Appendix C."""
    rcm, diffusion, consistency = (run_config(ABLATION, stage) for stage in stages_of(ABLATION))
    assert [c.training.batch_size for c in (rcm, diffusion, consistency)] == [1024, 1024, 256]
    assert [c.training.steps for c in (rcm, diffusion, consistency)] == [300_000, 100_000, 200_000]
    assert (diffusion.sampling.sampler, diffusion.sampling.steps, diffusion.evaluation.count) == ("euler", 50, 10_000)
    assert (consistency.sampling.sampler, consistency.evaluation.count) == ("one_step", 50_000)


def test_600_epochs_are_kept_of_the_longer_runs():
    for name, steps in [("imagenet256-xxl", 10**6), ("imagenet256-g", 2 * 10**6), ("imagenet512-l", 10**6)]:
        training = run_config(name, "diffusion").training
        assert training.steps == steps
        assert 750_000 % training.keep_every == 0


def test_shift_can_be_given():
    assert tiny_config().shift == 1.0
    assert tiny_config(noise={"shift": None}).shift == 8 / 64


# Reading --------------------------------------------------------------------------------------------------------------


def test_unknown_recipe_lists_the_recipes():
    with pytest.raises(UserError, match="recipe 'imagnet': not found") as error:
        run_config("imagnet", "diffusion")
    assert all(name in str(error.value) for name in recipe_names())


def test_unknown_path():
    with pytest.raises(UserError, match=r"mine\.yaml"):
        run_config("somewhere/mine.yaml", "diffusion")


def test_recipe_of_several_stages_wants_one():
    with pytest.raises(UserError, match="pretraining, diffusion, consistency"):
        run_config("digits")


def write(tmp_path, content, name="mine.yaml") -> str:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_base_is_laid_below(tmp_path):
    mine = {"base": "digits", "seed": 7, "diffusion": {"training": {"steps": 11}}}
    path = write(tmp_path, mine)
    config, base = run_config(path, "diffusion"), run_config("digits", "diffusion")
    assert (config.seed, config.training.steps, config.recipe) == (7, 11, "mine")
    expected = base.model_copy(update={"training": base.training.model_copy(update={"steps": 11})})
    assert config == expected.model_copy(update={"seed": 7, "recipe": "mine"})


def test_base_may_be_a_file(tmp_path):
    below = write(tmp_path, {"base": "digits", "seed": 3}, "below.yaml")
    above = write(tmp_path, {"base": below, "model": {"encoder": {"depth": 5}}})
    config = run_config(above, "pretraining")
    assert (config.seed, config.model.encoder.depth, config.model.encoder.width) == (3, 5, 96)


def test_base_is_looked_up_beside_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    write(tmp_path, {"base": "digits", "seed": 3}, "recipes/b.yaml")
    above = write(tmp_path, {"base": "b.yaml"}, "recipes/a.yaml")
    monkeypatch.chdir(tmp_path)
    assert run_config(above, "diffusion").seed == run_config("recipes/a.yaml", "diffusion").seed == 3
    lonely = write(tmp_path, {"base": "none.yaml"}, "recipes/c.yaml")
    with pytest.raises(UserError, match=r"c\.yaml: base 'none\.yaml': not found; no .*recipes/none\.yaml"):
        run_config(lonely, "diffusion")


def test_what_is_wrong_in_a_base_is_located_there(tmp_path):
    write(tmp_path, "base: digits\n\ntraining:\n  keep: -4\n", "b.yaml")
    above = write(tmp_path, "base: b.yaml\ntraining:\n  timeout: 9\n", "a.yaml")
    with pytest.raises(UserError, match=r"--training\.keep -4: must be at least 2 \(b\.yaml line 4\)"):
        run_config(above, "diffusion")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("consistency: {objective: {dropuot: 0.1}}", r"objective\.dropuot: no such setting; did you mean dropout"),
        ("pretraining: {training: {keep: 1}}", r"--training\.keep 1: must be at least 2 \(mine\.yaml line 2\)"),
        ("pretraining: x", r"pretraining: a section with settings is expected \(line 2\)"),
        ("training: x", r"training: a section with settings is expected \(line 2\)"),
        ("consistency: {training: [1]}", r"consistency\.training: a section with settings is expected \(line 2\)"),
        ("training: {lr: 1}", r"training\.lr: no such setting; did you mean optimizer\.lr"),
    ],
)
def test_a_mistake_in_another_stage_is_found_at_the_start(text, message, tmp_path):
    path = write(tmp_path, f"base: digits\n{text}\n")
    with pytest.raises(UserError, match=message):
        run_config(path, "diffusion")


def test_recipe_with_one_stage_needs_no_stage(tmp_path):
    content = read_recipe("digits")
    path = write(tmp_path, {k: v for k, v in content.items() if k not in KINDS or k == "diffusion"})
    assert run_config(path).stage == "diffusion"
    with pytest.raises(
        UserError, match="has the stages diffusion; it has no pretraining: add a section `pretraining:`"
    ):
        run_config(path, "pretraining")


@pytest.mark.parametrize(("content", "message"), [("a: [1", "not valid YAML"), ("- 1\n- 2", "a mapping of sections")])
def test_broken_files(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        run_config(path, "diffusion")
    assert path in str(error.value)


@pytest.mark.parametrize(("recipe", "stage"), STAGES_OF_ALL[:6])
def test_yaml_round_trip(tmp_path, recipe, stage):
    config = run_config(recipe, stage)
    path = write(tmp_path, config.to_yaml(), "config.yaml")
    assert run_config(path) == config
    assert run_config(path, stage) == config
    other = next(s for s in KINDS if s != stage)
    with pytest.raises(UserError, match=f"a configuration for {stage}, not for {other}"):
        run_config(path, other)


def test_json_round_trip():
    config = tiny_config("pretraining")
    assert parse(config.model_dump(mode="json"), "here") == config


# Merging --------------------------------------------------------------------------------------------------------------


def test_merge_goes_deep_and_changes_nothing_in_place():
    below, above = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}, {"a": {"c": {"f": 3}}, "e": [2], "g": None}
    assert merge(below, above) == {"a": {"b": 1, "c": {"d": 2, "f": 3}}, "e": [2], "g": None}
    assert below == {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}


def test_another_kind_replaces_the_mapping():
    below = {"views": {"kind": "moco_v3", "gray": 0.5}}
    assert merge(below, {"views": {"kind": "affine", "degrees": 3}}) == {"views": {"kind": "affine", "degrees": 3}}
    assert merge(below, {"views": {"flip": 0.1}})["views"] == {"kind": "moco_v3", "gray": 0.5, "flip": 0.1}


def test_views_are_chosen_by_kind():
    assert isinstance(run_config("digits", "pretraining").objective.views, AffineViewsConfig)
    views = run_config("cifar10", "pretraining").objective.views
    assert isinstance(views, MocoViewsConfig)
    assert views.crop_scale == (0.2, 1.0)
    assert views.gray == 0.2


# Errors ---------------------------------------------------------------------------------------------------------------


def broken(**changes) -> dict:
    return merge(tiny_config().model_dump(mode="json"), changes)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"trainings": {}}, "trainings"),
        ({"training": {"step": 3}}, "training.step"),
        ({"model": {"encoder": {"layers": 3}}}, "model.encoder.layers"),
        ({"objective": {"momentum": 0.5}}, "objective.momentum"),
    ],
)
def test_unknown_key(changes, place):
    with pytest.raises(UserError, match=r"mine\.yaml: 1 wrong settings") as error:
        parse(broken(**changes), "mine.yaml")
    assert f"{place}: no such setting" in str(error.value)


def test_wrong_types_are_listed_together():
    changes = {"training": {"steps": "many", "precision": "fp8"}, "data": {"image_size": 8.5}, "objective": {"std": []}}
    with pytest.raises(UserError, match="4 wrong settings") as error:
        parse(broken(**changes), "mine.yaml")
    for place in ("training.steps", "training.precision", "data.image_size", "objective.std"):
        assert f"  {place}: " in str(error.value)


def test_missing_section():
    content = broken()
    del content["optimizer"]
    with pytest.raises(UserError, match="optimizer: Field required"):
        parse(content, "mine.yaml")


def test_unknown_kind_of_objective():
    with pytest.raises(UserError, match="objective"):
        parse(broken(objective={"kind": "gan"}), "mine.yaml")


def test_several_problems_in_one_message():
    content = tiny_content(
        data={"image_size": 9, "normalization": "imagenet"},
        model={"encoder": {"heads": 3}, "decoder": {"heads": 5}},
        training={"steps": 0, "micro_batch": 64, "ema": [1.0], "keep": 1},
        optimizer={"lr": -1.0, "clip": 0.0},
        noise={"sigma_min": 100.0, "shift": 0.0},
        objective={"label_dropout": 1.5},
        sampling={"sampler": "multistep", "steps": 0},
    )
    with pytest.raises(UserError, match="15 wrong settings") as error:
        checked(content, "mine.yaml")
    message = str(error.value)
    for flag in [
        "--data.image-size 9",
        "--data.normalization imagenet",
        "--model.encoder.width 16: not a multiple of --model.encoder.heads 3",
        "--model.decoder.width 24: not a multiple of --model.decoder.heads 5",
        "--training.steps 0",
        "--training.micro-batch 64",
        "--training.ema 1.0",
        "--training.keep 1",
        "--optimizer.lr -1.0",
        "--optimizer.clip 0.0",
        "--noise.sigma-min 100.0",
        "--noise.shift 0.0",
        "--objective.label-dropout 1.5",
        "--sampling.sampler multistep",
        "--sampling.steps 0",
    ]:
        assert flag in message, flag
    assert len(message.splitlines()) == 16


@pytest.mark.parametrize(
    ("stage", "changes", "flag"),
    [
        ("consistency", {"objective": {"dropout": 1.0}}, "--objective.dropout 1"),
        ("consistency", {"sampling": {"guidance": 2.0}}, "--sampling.guidance"),
        ("consistency", {"training": {"batch_size": 1}}, "--training.batch-size 1: must be at least 2"),
        ("pretraining", {"training": {"batch_size": 1}}, "--training.batch-size 1: must be at least 2"),
        ("diffusion", {"model": {"num_classes": 0}, "sampling": {"guidance": 2.0}}, "--sampling.guidance"),
        ("diffusion", {"model": {"num_classes": -1}}, "--model.num-classes -1"),
        ("onestep", {"objective": {"levels": []}}, "--objective.levels: takes at least 1 value, not 0"),
        ("onestep", {"objective": {"levels": [1.0] * 20}}, "--objective.levels: takes at most 16 values, not 20"),
        ("onestep", {"objective": {"levels": [0.5, 0.5]}}, "--objective.levels 0.5 0.5: must differ"),
        ("onestep", {"objective": {"levels": [0.5, 100]}}, "--objective.levels 0.5 100: must differ, and lie between"),
        (
            "onestep",
            {"objective": {"covariance": "class"}, "model": {"num_classes": 10**6}},
            "covariance class: those of 1000000 classes",
        ),
        ("diffusion", {"data": {"channels": 2}}, "data.channels: Input should be 1 or 3"),
        ("diffusion", {"data": {"max_damaged": -1}}, "--data.max-damaged -1"),
        ("diffusion", {"data": {"timeout": 0.0}}, "--data.timeout 0.0: must be at least 0.01"),
        ("diffusion", {"optimizer": {"lr": 0.0}}, "--optimizer.lr 0"),
        ("diffusion", {"model": {"patch_size": 0}}, "--model.patch-size 0"),
        ("diffusion", {"model": {"encoder": {"heads": 0}}}, "--model.encoder.heads 0"),
        ("diffusion", {"training": {"log_every": 0}}, "--training.log-every 0"),
    ],
)
def test_one_problem(stage, changes, flag):
    with pytest.raises(UserError) as error:
        checked(tiny_content(stage, **changes), "mine.yaml")
    (found,) = str(error.value).splitlines()[1:]
    assert flag in found


@pytest.mark.parametrize("stage", KINDS)
def test_the_tiny_configuration_has_no_problem(stage):
    assert list(problems(tiny_config(stage))) == []


def test_a_configuration_cannot_be_changed_in_place():
    config: RunConfig = tiny_config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_micro_batches_divide_the_batch():
    found = list(problems(tiny_config(training={"batch_size": 64, "micro_batch": 12})))
    assert found == ["--training.micro-batch 12: must divide --training.batch-size 64"]
    assert list(problems(tiny_config(training={"batch_size": 64, "micro_batch": 4}))) == []


@pytest.mark.parametrize("recipe", recipe_names())
def test_descriptions_count_right(recipe):
    """`4.8M parameters`, `EPG-L/32 (545M)`: what the networks have, to the digits that are given."""
    description = read_recipe(recipe)["description"]
    config = run_config(recipe, "diffusion" if "diffusion" in stages_of(recipe) else None)
    classes = 10 if config.model.num_classes is None else config.model.num_classes
    model = config.model.model_copy(update={"num_classes": classes})
    millions = epg_cost(model, config.data).parameters / 1e6
    for stated in re.findall(r"(\d+(?:\.\d+)?)M", description):
        decimals = len(stated.partition(".")[2])
        assert stated == f"{millions:.{decimals}f}", f"{recipe}: {millions:.2f}M"
    if recipe != "imagenet64":
        assert "M" in description


def test_settings_that_differ_between_the_imagenet_recipes():
    for recipe in PAPER:
        config = run_config(recipe, "diffusion")
        assert config.sampling.guidance == (2.5 if config.data.image_size == 256 else 3.2)
        assert config.training.steps == (2_000_000 if recipe.endswith("-g") else 1_000_000)
