"""The fast training step: a Llama-like model with LoRA, forward and backward written out, over packs of examples.

What autograd, transformers and peft would do in many passes over memory is done here in few: projections that read the
same input are one product, the LoRA factors ride in it as extra columns, a norm is computed with the sum before it,
activations that are cheap to compute are computed again in the backward pass instead of kept, and the last layer and the
head see only the tokens that predict a label. The numbers are those of the plain model (``tests/test_fast.py``).

- ``weights``: frozen weights of joined projections with their LoRA factors around them, kept or made when needed.
- ``products``: the products of such a joined projection, forward and backward.
- ``pointwise``: what happens between the products, one kernel each on a GPU (``kernels``).
- ``attention``, ``blocks``: the parts of a layer as autograd functions.
- ``loss``: head and cross-entropy at the label tokens.
- ``llama``: the whole forward pass of a model that has the shape of a Llama.
"""
