"""Loops of language, agents and graphs, trainers of other people, and a zoo of optimizers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from client import MIDDLE, STEPS, Ended, check, labels, of, options, run, same, silence
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from shim import install_torchvision_shim

pytestmark = pytest.mark.slow


class Attention(nn.Module):
    """Causal, two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, 2, c // 2).transpose(1, 2) for y in self.qkv(x).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Layer(nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.proj(F.relu(self.fc(self.ln2(x))))


class Gpt(nn.Module):
    """Two layers, tied embeddings."""

    def __init__(self, vocabulary: int = 11, width: int = 8) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(6, width)
        self.layers, self.ln = nn.ModuleList([Layer(width), Layer(width)]), nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.ln(x))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def tokens(step: int) -> Tensor:
    return labels(step, 24, 11).view(4, 6)


def rate(step: int) -> float:
    """Warm-up, then half a cosine."""
    return 5e-3 * ((step + 1) / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / (STEPS - 4))))


def small_gpt(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
    """Micro-batches, groups by number of axes, the rate set by hand, and a prefix taken off all names on resume."""
    torch.manual_seed(4)
    model = Gpt().double()
    silence(*(layer.fc for layer in model.layers))
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95))
    pruner = demp.DemP(
        model, optimizer, example_inputs=(tokens(0),), batches=lambda seed: [(tokens(seed + 7),)], **options()
    )
    start = 0
    if resume:
        saved = torch.load(folder / "ckpt.pt", weights_only=True)
        pruner.load_state_dict(saved["pruner"])
        model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["iter_num"]
    for step in range(start, STEPS if stop is None else stop):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for micro in range(2):
            loss = model(tokens(2 * step + micro), tokens(2 * step + micro + 500)) / 2
            loss.backward()
            del loss
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step + 1 == MIDDLE:
            folder.mkdir(exist_ok=True)
            named = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
            state = {"model": named, "optimizer": optimizer.state_dict(), "iter_num": MIDDLE}
            torch.save({**state, "pruner": pruner.state_dict()}, folder / "ckpt.pt")
    pruner.finish() if stop is None else pruner.detach()
    return Ended(model, pruner, (tokens(3),))


class Agent(nn.Module):
    """Actor and critic; nobody calls its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.actor, self.critic = nn.Linear(16, 2), nn.Linear(16, 1)

    def get_value(self, x: Tensor) -> Tensor:
        return self.critic(self.network(x))

    def get_action_and_value(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.network(x)
        chances = torch.distributions.Categorical(logits=self.actor(hidden))
        return chances.log_prob(action), chances.entropy(), self.critic(hidden)


def both(agent: Agent, x: Tensor) -> tuple[Tensor, Tensor]:
    """All of an agent."""
    hidden = agent.network(x)
    return agent.actor(hidden), agent.critic(hidden)


def agent(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
    """A clipped surrogate on fresh roll-outs, no forward, and a target network that follows slowly."""
    torch.manual_seed(5)
    model, target = Agent().double(), Agent().double()
    silence(model.network[0], model.network[2])
    target.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=2.5e-3, eps=1e-5)
    states = (of(96, 16, 4),)
    pruner = demp.DemP(
        model, optimizer, example_inputs=states, forward=both, copies=[target], batches=[states], **options()
    )
    start = 0
    if resume:
        saved = torch.load(folder / "agent.pt", weights_only=True)
        pruner.load_state_dict(saved["pruner"])
        for name, holder in (("agent", model), ("target", target), ("optimizer", optimizer)):
            holder.load_state_dict(saved[name])
        start = saved["update"]
    for step in range(start, STEPS if stop is None else stop):
        x, action, gain = of(step, 16, 4), labels(step, 16, 2), of(step, 16, seed=1)
        with torch.no_grad():
            before, _, _ = model.get_action_and_value(x, action)
            returns = target.get_value(x).flatten() + gain
        log, entropy, value = model.get_action_and_value(x, action)
        ratio = (log - before).exp()
        surrogate = torch.max(-gain * ratio, -gain * ratio.clamp(0.8, 1.2)).mean()
        (surrogate - 0.01 * entropy.mean() + 0.5 * (value.flatten() - returns).square().mean()).backward()
        del log, entropy, value, ratio, surrogate
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(target.parameters(), model.parameters(), strict=True):
                mine.mul_(0.9).add_(0.1 * theirs)
        if step + 1 == MIDDLE:
            folder.mkdir(exist_ok=True)
            holders: dict[str, Any] = {"agent": model, "target": target, "optimizer": optimizer, "pruner": pruner}
            torch.save({n: h.state_dict() for n, h in holders.items()} | {"update": MIDDLE}, folder / "agent.pt")
    pruner.finish() if stop is None else pruner.detach()
    return Ended(Whole(model), pruner, states, Whole(target))


class Whole(nn.Module):
    """An agent whose forward is all of it."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return both(self.agent, x)


class Messages(nn.Module):
    """Neighbours are summed, then two linear layers."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.own, self.others, self.mix = nn.Linear(given, 12), nn.Linear(given, 12), nn.Linear(12, made)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        gathered = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        return self.mix(F.relu(self.own(x) + self.others(gathered)))


class GraphNet(nn.Module):
    """Two rounds of messages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Messages(5, 10), Messages(10, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x, edges)), edges)


def graph_net(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
    """One graph, masks of nodes, and the best epoch kept in memory."""
    torch.manual_seed(6)
    model = GraphNet().double()
    silence(model.first.own, model.first.others, model.second.own, model.second.others, model.first.mix)
    x, y, edges = of(95, 20, 5), labels(95, 20, 3), torch.stack([labels(1, 60, 20), labels(2, 60, 20)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    pruner = demp.DemP(model, optimizer, example_inputs=(x, edges), batches=[(x, edges)], **options())
    start = 0
    if resume:
        saved = torch.load(folder / "gnn.pt", weights_only=True)
        pruner.load_state_dict(saved["pruner"])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["epoch"]
    for step in range(start, STEPS if stop is None else stop):
        optimizer.zero_grad()
        F.cross_entropy(model(x, edges)[:12], y[:12]).backward()
        optimizer.step()
        if step + 1 == MIDDLE:
            folder.mkdir(exist_ok=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": MIDDLE}
            torch.save({**state, "pruner": pruner.state_dict()}, folder / "gnn.pt")
    pruner.finish() if stop is None else pruner.detach()
    return Ended(model, pruner, (x, edges))


@pytest.mark.parametrize("client", [small_gpt, agent, graph_net])
def test_a_loop_of_sequences(client: Any, tmp_path: Path):
    check(client, tmp_path)


def perceptron() -> nn.Sequential:
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    silence(model[1], model[3])
    return model.double()


ZOO = {
    "SGD": {"momentum": 0.9, "dampening": 0.1}, "Adam": {"amsgrad": True}, "AdamW": {"fused": True}, "NAdam": {},
    "RAdam": {}, "Adamax": {}, "Adagrad": {}, "Adadelta": {}, "RMSprop": {"centered": True, "momentum": 0.5},
    "Rprop": {}, "ASGD": {}, "Adafactor": {},
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_every_optimizer_resumes_to_the_bit(name: str, tmp_path: Path):
    # torch loads NAdam's product of momenta, which is in single precision, in that of the parameters
    dtype = torch.float32 if name == "NAdam" else torch.float64

    def zoo(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
        model, x = perceptron().to(dtype), (of(94, 16, 6).to(dtype),)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **ZOO[name])
        pruner = demp.DemP(model, optimizer, example_inputs=x, batches=[x], **options())
        start = 0
        if resume:
            saved = torch.load(folder / "zoo.pt", weights_only=True)
            pruner.load_state_dict(saved[0])
            model.load_state_dict(saved[1])
            optimizer.load_state_dict(saved[2])
            start = MIDDLE
        for step in range(start, STEPS if stop is None else stop):
            optimizer.zero_grad()
            F.cross_entropy(model(of(step, 16, 6).to(dtype)), labels(step, 16, 3)).backward()
            optimizer.step()
            if step + 1 == MIDDLE:
                folder.mkdir(exist_ok=True)
                torch.save([pruner.state_dict(), model.state_dict(), optimizer.state_dict()], folder / "zoo.pt")
        pruner.finish() if stop is None else pruner.detach()
        return Ended(model, pruner, x)

    check(zoo, tmp_path, exact=dtype == torch.float64)


def test_accelerate_saves_and_loads_its_folder(tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    from demp.integrations import accelerate as integration

    def example(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
        accelerator = accelerate.Accelerator(cpu=True)
        model, x = perceptron(), (of(94, 16, 6),)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
        pruner = integration.attach(accelerator, model, optimizer, example_inputs=x, batches=[x], **options())
        if resume:
            accelerator.load_state(folder / "state")
        for step in range(pruner.step, STEPS if stop is None else stop):
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(of(step, 16, 6)), labels(step, 16, 3)))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if step + 1 == MIDDLE:
                accelerator.save_state(folder / "state")
        pruner.finish() if stop is None else pruner.detach()
        return Ended(model, pruner, x)

    check(example, tmp_path)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_lightning_module_loads_its_checkpoint_with_one_line(tmp_path: Path):
    install_torchvision_shim()
    pl = pytest.importorskip("lightning.pytorch")
    from demp.integrations.lightning import DemPCallback

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            demp.load_state_dict(self, checkpoint["state_dict"])

    examples = torch.utils.data.TensorDataset(of(1, 48, 6), labels(1, 48, 3))
    callback = DemPCallback(example_inputs=(of(94, 16, 6),), batches=[of(94, 16, 6)], period=3, peak_noise_std=0.0)
    trainer = pl.Trainer(
        max_epochs=4, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    task = Task()
    trainer.fit(task, torch.utils.data.DataLoader(examples, batch_size=16))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert callback.pruner.history[0].removed >= 4
    loaded = Task.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu")
    assert same(task, loaded) and same(run(task, (of(93, 4, 6),)), run(loaded, (of(93, 4, 6),)))
