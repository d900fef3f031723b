import pytest

from demp.errors import UsageError
from demp.train import (
    AugmentConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

FULL = TrainConfig(
    recipe="mine",
    model=ModelConfig(name="mlp", width=0.5, activation="gelu", options={"hidden": [30, 10]}),
    data=DataConfig(name="mnist", augment=AugmentConfig(crop="pad", padding=2, flip=True)),
    optimizer=OptimizerConfig(name="sgdw", momentum=0.8, betas=(0.8, 0.99)),
    schedule=ScheduleConfig(name="step", milestones=(0.25, 0.5), warmup=0.1),
    method=MethodConfig(name="demp", options={"peak_strength": 1e-3, "exclude": ["head*"]}),
    epochs=2.5,
    seed=7,
    out="somewhere",
)


def test_toml_round_trip(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(FULL.to_toml())
    assert TrainConfig.from_toml(path) == FULL


def test_defaults_and_overrides_from_a_short_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('steps = 10\n[optimizer]\nname = "sgdm"\nweight_decay = 0\n')
    config = TrainConfig.from_toml(path)
    assert (config.steps, config.optimizer.lr, config.optimizer.weight_decay) == (10, 0.1, 0.0)
    assert isinstance(config.optimizer.weight_decay, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stpes": 1}, r"unknown config key 'stpes'; did you mean 'steps'\?"),
        ({"steps": 1, "data": {"nme": "x"}}, r"'data.nme'; did you mean 'data.name'\?"),
        ({"steps": 1, "schedule": {"nam": "step"}}, r"'schedule.nam'; did you mean 'schedule.name'\?"),
        ({"steps": 1, "lr": 0.1}, r"'lr'; did you mean 'optimizer.lr'\?"),
        ({"steps": 1, "zzz": 1}, "unknown config key 'zzz'; known keys: recipe, model"),
        ({"steps": 1, "data": {"augment": {"flip": 1}}}, "data.augment.flip is 1; give true or"),
        ({"steps": 1.5}, "steps is 1.5; give a whole number"),
        ({"steps": True}, "steps is True; give a whole number"),
        ({"steps": 1, "seed": "one"}, "seed is 'one'; give a whole number"),
        ({"steps": 1, "optimizer": {"lr": "fast"}}, "optimizer.lr is 'fast'; give a number"),
        ({"steps": 1, "optimizer": {"betas": 0.9}}, "optimizer.betas is 0.9; give a list"),
        ({"steps": 1, "optimizer": {"betas": [0.9]}}, "optimizer.betas has 1 values; give 2"),
        ({"steps": 1, "model": "resnet18"}, "model is 'resnet18'; give a table"),
        ({"steps": 1, "model": {"options": 3}}, "model.options is 3; give a table"),
        ({"steps": 1, "method": {"name": "dmp"}}, "'dmp'.*did you mean 'demp'"),
        ({"steps": 1, "method": {"options": {"peek_strength": 1}}}, "did you mean 'method.options.peak_strength'"),
        ({"steps": 1, "method": {"options": {"peak_strength": "x"}}}, "give a number"),
        ({"steps": 1, "method": {"options": {"peak_strength": -1.0}}}, "peak_strength is -1"),
        ({"steps": 1, "method": {"options": {"peak_noise_std": float("nan")}}}, "noise_std is nan"),
        ({"steps": 1, "method": {"name": "dense", "options": {"period": 3}}}, "no options"),
    ],
)
def test_wrong_keys_and_types(values, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(), "give one of them"),
        (lambda: TrainConfig(steps=1, epochs=1.0), "give one of them"),
        (lambda: TrainConfig(steps=-3), "steps is -3"),
        (lambda: TrainConfig(steps=1, batch_size=0), "batch_size is 0; give at least 1"),
        (lambda: TrainConfig(steps=1, batch_size=10, accumulate=3), "must divide batch_size, 10"),
        (lambda: TrainConfig(steps=1, label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: TrainConfig(steps=1, precision="bf61"), "did you mean 'bf16'"),
        (lambda: ModelConfig(width=0.0), "model.width is 0.0; give a number above 0"),
        (lambda: OptimizerConfig(name="sgd"), "choose one of adam, adamw, sgdm, sgdw"),
        (lambda: OptimizerConfig(lr=float("nan")), "optimizer.lr is nan"),
        (lambda: OptimizerConfig(lr=-1.0), "optimizer.lr is -1"),
        (lambda: OptimizerConfig(momentum=1.0), "optimizer.momentum is 1.0"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "optimizer.betas is 1.0"),
        (lambda: ScheduleConfig(name="cosin"), "did you mean 'cosine'"),
        (lambda: ScheduleConfig(milestones=(1.5,)), "schedule.milestones is 1.5"),
        (lambda: ScheduleConfig(name="one-cycle", warmup=0.1), "one-cycle has its own rise"),
        (lambda: AugmentConfig(crop="random"), "data.augment.crop is 'random'"),
        (lambda: AugmentConfig(min_area=0.0), "data.augment.min_area is 0.0"),
        (lambda: AugmentConfig(randaugment_magnitude=30.0), "randaugment_magnitude is 30.0"),
        (lambda: DataConfig(name=""), "name a data set"),
        (lambda: DataConfig(probe_size=0), "data.probe_size is 0"),
    ],
)
def test_values_out_of_range_name_the_field_and_the_remedy(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_learning_rate_defaults_to_the_papers():
    assert OptimizerConfig(name="adam").lr == OptimizerConfig(name="adamw").lr == 0.005
    assert OptimizerConfig(name="sgdm").lr == OptimizerConfig(name="sgdw").lr == 0.1


def test_total_steps():
    assert TrainConfig(epochs=250.0).total_steps(50_000) == 97_656
    assert TrainConfig(epochs=100.0, batch_size=256).total_steps(1_281_167) == 500_456
    assert TrainConfig(epochs=0.001).total_steps(100) == 1
    assert TrainConfig(steps=12).total_steps(50_000) == 12


def test_merging_drops_what_belonged_to_a_replaced_choice():
    merged = FULL.merged({"method": {"name": "dense"}, "optimizer": {"name": "adam"}, "steps": 9})
    assert merged.method == MethodConfig(name="dense")
    assert merged.optimizer.lr == 0.005
    assert merged.optimizer.momentum == 0.8
    assert (merged.steps, merged.epochs) == (9, 0.0)
    assert merged.model == FULL.model
    assert FULL.merged({"method": {"name": "demp"}}) == FULL
    assert FULL.merged({"model": {"name": "resnet18"}}).model.options == {}


def test_identity_ignores_seed_and_folder_only():
    same = FULL.merged({"seed": 8, "out": "elsewhere"})
    assert same.identity() == FULL.identity()
    assert FULL.merged({"batch_size": 64}).identity() != FULL.identity()


def test_changes_are_named():
    changed = FULL.merged({"optimizer": {"momentum": 0.9}, "out": "elsewhere"})
    assert FULL.changes(changed) == ["optimizer.momentum was 0.8 and is 0.9"]
    assert FULL.changes(FULL) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no config file"), (b"steps = ", "not valid TOML"), (b"\xff\xfe", "cannot read")],
)
def test_unreadable_files(tmp_path, content, message):
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_toml(path)
