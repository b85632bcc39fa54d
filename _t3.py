import torch
from torch import nn
from benchmarks import zoo
zoo.load()
from sparsify.passes.capture import capture
from sparsify.passes.canonicalize import Canonicalize
torch.set_grad_enabled(False)
class B(nn.Module):
    def blend_v(self, a, b, blend_extent):
        for y in range(blend_extent):
            b[:, :, y, :] = a[:, :, -blend_extent + y, :] * (1 - y / blend_extent) + b[:, :, y, :] * (y / blend_extent)
        return b
    def forward(s,x):
        a,b=x[:,:,:6].sin(),x[:,:,4:].sin()
        return torch.cat([a[:,:,:4],s.blend_v(a,b,2)],2)
c=capture(B().eval(),(torch.randn(1,3,10,8),),{})
print(c.module.graph)
print(Canonicalize()(c.module).graph)
