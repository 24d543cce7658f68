"""Muon for matrices, Adam for the rest, over bf16 networks with f32 master weights; and the mean of the weights (EMA).

On a CPU with bf16 instructions the network itself runs in bf16 (three times as fast as f32); what is learnt is kept in f32.
"""

import math

import torch


MUON_MOMENTUM = 0.95
ADAM_BETAS = 0.9, 0.99


def orthogonalise(g: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: five Newton-Schulz iterations (Jordan et al., Muon, 2024)."""
    x = g.bfloat16()
    if x.shape[0] > x.shape[1]:
        return orthogonalise(g.T).T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.float()


class Optimizer:
    """Parameters for which `matrix(name, parameter)` holds are moved by Muon, all others by Adam.

    `master` are the weights, `mean` their moving average, `first` and `second` the moving averages of the gradient and of its
    square (Adam only), `scale` a factor on Muon's learning rate, parameter by parameter.
    """

    def __init__(self, network: torch.nn.Module, matrix, muon_lr: float, adam_lr: float, ema: float):
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.master = {n: p.detach().float().clone() for n, p in self.parameters.items()}
        self.mean = {n: m.clone() for n, m in self.master.items()}
        self.matrix = {n: bool(matrix(n, p)) for n, p in self.parameters.items()}
        self.scale = dict.fromkeys(self.parameters, 1.0)  # of a matrix's learning rate
        self.first = {n: torch.zeros_like(m) for n, m in self.master.items()}
        self.second = {n: torch.zeros_like(m) for n, m in self.master.items() if not self.matrix[n]}
        self.muon_lr, self.adam_lr, self.ema = muon_lr, adam_lr, ema
        self.step_number = 0

    @torch.no_grad()
    def step(self, rate: float, clip: float = 1.0) -> float:
        """One step at `rate` times the learning rates. Returns the norm of the gradient, which Adam's share is clipped by.

        Muon does not care how long a gradient is.
        """
        self.step_number += 1
        t = self.step_number
        gradients = {n: p.grad.float() for n, p in self.parameters.items() if p.grad is not None}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        scale = min(1.0, clip / (norm + 1e-9))
        # Early on the mean must forget the start faster than its final horizon would.
        ema = min(self.ema, (1 + t) / (10 + t))
        for n, g in gradients.items():
            m = self.master[n]
            if self.matrix[n]:
                self.first[n].lerp_(g, 1 - MUON_MOMENTUM)
                update = orthogonalise(torch.lerp(g, self.first[n], MUON_MOMENTUM).flatten(1)).view_as(m)
                update *= max(1.0, m.shape[0] / m[0].numel()) ** 0.5
                m.sub_(update, alpha=rate * self.muon_lr * self.scale[n])
            else:
                g = g * scale
                self.first[n].lerp_(g, 1 - ADAM_BETAS[0])
                self.second[n].lerp_(g.square(), 1 - ADAM_BETAS[1])
                root = (self.second[n] / (1 - ADAM_BETAS[1] ** t)).sqrt_().add_(1e-8)
                m.addcdiv_(self.first[n] / (1 - ADAM_BETAS[0] ** t), root, value=-rate * self.adam_lr)
            self.mean[n].lerp_(m, 1 - ema)
            self.parameters[n].copy_(m)
            self.parameters[n].grad = None
        return norm

    @torch.no_grad()
    def copy_mean_to(self, network: torch.nn.Module) -> None:
        target = dict(network.named_parameters())
        for n, m in self.mean.items():
            target[n].copy_(m)

    @torch.no_grad()
    def copy_master_to(self, network: torch.nn.Module) -> None:
        target = dict(network.named_parameters())
        for n, m in self.master.items():
            target[n].copy_(m)

    def state_dict(self) -> dict:
        return {k: getattr(self, k) for k in ("master", "mean", "first", "second", "step_number")}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for k in ("master", "mean", "first", "second"):
            getattr(self, k).update(state[k])
        self.step_number = state["step_number"]
        for n, p in self.parameters.items():
            p.copy_(self.master[n])
