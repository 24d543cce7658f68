"""Group normalization as a scale and shift per channel. torch's own takes half of the VAE's training time on a CPU."""

import torch


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups: int, eps: float):
        n, c, h, w = x.shape
        count = c // groups * h * w
        flat = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        mean = flat.sum(1, dtype=torch.float32).view(n, groups, -1).sum(2) / count
        square = (flat * flat).sum(1, dtype=torch.float32).view(n, groups, -1).sum(2) / count
        inverse = (square - mean * mean).clamp_min(0).add(eps).rsqrt()
        mean, inverse = (t.repeat_interleave(c // groups, 1) for t in (mean, inverse))
        scale = inverse * weight.float()
        shift = bias.float() - mean * scale
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.groups = groups
        out = torch.addcmul(shift.to(x.dtype)[:, None], flat, scale.to(x.dtype)[:, None])
        return out.view(n, h, w, c).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mean, inverse = ctx.saved_tensors
        n, c, h, w = x.shape
        groups = ctx.groups
        count = c // groups * h * w
        flat = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        g = gradient.permute(0, 2, 3, 1).reshape(n, h * w, c)
        sum_g = g.sum(1, dtype=torch.float32)
        sum_gx = ((g * flat).sum(1, dtype=torch.float32) - mean * sum_g) * inverse  # x normalized

        def group_mean(per_channel):
            means = (per_channel * weight.float()).view(n, groups, -1).sum(2) / count
            return means.repeat_interleave(c // groups, 1)

        mean_g, mean_gx = group_mean(sum_g), group_mean(sum_gx)
        # inverse * (weight * g - mean_g - normalized * mean_gx), sorted by g, x and constants
        of_g = inverse * weight.float()
        of_x = -inverse * inverse * mean_gx
        constant = inverse * (inverse * mean_gx * mean - mean_g)
        out = torch.addcmul(constant.to(x.dtype)[:, None], flat, of_x.to(x.dtype)[:, None])
        out = out.addcmul_(g, of_g.to(x.dtype)[:, None])
        return (
            out.view(n, h, w, c).permute(0, 3, 1, 2),
            sum_gx.sum(0).to(weight.dtype),
            sum_g.sum(0).to(weight.dtype),
            None,
            None,
        )


class GroupNorm(torch.nn.GroupNorm):
    def forward(self, x):
        if x.ndim != 4:  # the attention's
            return super().forward(x)
        return _Normalize.apply(x, self.weight, self.bias, self.num_groups, self.eps)


def use_in(network: torch.nn.Module) -> None:
    for module in network.modules():
        if type(module) is torch.nn.GroupNorm:
            module.__class__ = GroupNorm
