"""The words around the tables of bench/frontier_page.py, in Markdown."""

SECTION = """## The learning frontier

What does a run learn for the bytes that it sends? Four peers, 117 thousand parameters, batches of 8 examples of 64
bytes for each, AdamW with {warmup} steps of warm-up and a constant rate; equal tokens for every arm, {short_steps}
and {long_steps} inner steps. Zero is one process with the whole batch of 32; `alone` is a peer with a quarter of the
tokens. Every arm had the same effort: the best of a grid of rates ({rates}) on seed 0 at {short_steps} steps, and with
it three seeds and both lengths. Outer rates and momenta are as named, not tuned. Losses are means over seeds, with
their standard deviation; percentages compare runs of equal seeds. Bytes are counted from real payloads: what a peer
sends to the others, contributions and means, for each token that it trained on.

One process plays all four peers, with the codecs, the partition, the optimizers, the data streams and the model of
real ones ({machine}). The committed state is held once, so that digests are equal by construction. Examples come in
random order (`bench/frontier_data.py` says why).

### What was to be reached

At {long_steps} steps:

{targets}

At {short_steps} steps:

{short_targets}

Published recipes, and the best of ours that sends no more bytes (to 1 %: in a model as small as this, the last rows of
sparse parts are short ones), at {long_steps} steps:

{recipes}

At {short_steps} steps, where at the fewest bytes nobody beats one peer alone:

{short_recipes}

The best of many arms are shown, and the losses of equal arms over the whole batch's differ from seed to seed by one or
two points: differences of one point are not told apart here. SparseLoCo runs as written: everyone sends its
contribution to everyone, and the mean is exact. `updates 15 sparse ef.95` and `30` are the same through reducers, whose
mean again keeps one value in 64: half the bytes, and a worse mean than bytes saved. Arms with Muon inside are in none
of these comparisons: in them nothing but the exchange differs.

### What "local" means

With a codec that leaves things out, local work usually begins at the committed state, and what was left out is added
to the next contribution (error feedback). With `residual = "local"` local work begins at the committed state minus
what was left out: a peer's own unsent progress stays in its parameters, and so in its next contribution, which is
again committed minus local. (Step-ahead error feedback: Xu, Huo and Huang 2021, there for gradients.) Nothing else
differs, neither on the wire nor in what is committed. `updates 1 sparse/32` was run both ways. Why it helps was not
measured; a likely reason is that a peer which does not see its own unsent progress makes it again.

"Mean sparse": contributions keep one value in 256, and the mean, to which four peers bring different ones, one in 64
(`mean_keep_one_in`).

### {long_steps} inner steps

{long}

### {short_steps} inner steps

{short}

### Tried once

One rate (0.003), seed 0. These do not count for what is said above.

{tried}

Arms are named by what they average, inner steps, codec (`sparse/N`: one value in N; `sparse` is `sparse/64`), and
what becomes of what the codec leaves out (`ef.95`: error feedback of 0.95). "Overlapped": the mean of a round is
applied one round late, as in CoCoD-SGD (Shen et al. 2019); "mixed": a part of it (`overlap_mixing`). "gradients" are
applied by AdamW. SPARTA commits no state; the loss is that of its peers' mean parameters. Recipes run as they were
published, but for the inner rate.

{confirmed}### Which to choose

Few inner steps are worth more than exact values: take as few as the link and its round trips allow, and then the
sparsest codec with `keep_one_in` times `inner_steps` at most 40, what is left out kept local. That product is how many
inner steps a value waits until it is sent; at 256 and 320 it costs 13%, and at 960 the peers' parameters drift apart
until nothing is learned. Beyond, with `residual = "feedback"`, few inner steps are still better than many for
the same bytes, if the mean keeps more than the contributions do.

A mean that comes one round late costs about what three times the inner steps do, and more where peers go all of the
way to it. With 30 inner steps of fp32, half of the way (`mixed 0.5`, after Streaming DiLoCo: Douillard et al. 2025)
has a quarter of that cost at {long_steps} steps and a third at {short_steps}, and learns what 100 inner steps do that
wait; with 10 it is better at {short_steps} only. With sparse codecs and what they leave out kept local, which is a way
of one's own already, all of the way is a little better; and every step with one value in 64 it costs next to nothing.
So where a manifest does not say, `overlap_mixing` is 0.5, and 1 with sparse codecs.

With SGD at 1.0 and at {short_steps} steps, this is what `waggle run new` goes by:

{defaults}

The outer optimizer: with 30 inner steps DiLoCo's momentum loses in runs this short, and half of it wins. With 100 it
wins at {long_steps} steps, by two points of which one may be chance. So plain SGD at 1.0, the mean of the peers'
parameters, is the default; `waggle run new` takes momentum 0.5 from 30 inner steps on, and DiLoCo's where a run is
longer than 20 000.

The inner one: Muon learned more than AdamW in every arm that had it, tuned or tried once, and the more the more inner
steps lie between rounds. With it 30 of them in int4, 236 times fewer bytes, learned more than AdamW did with the whole
batch in every step; MuLoCo, the published recipe with Muon, learned less at these lengths, for as many bytes as DiLoCo.
So the templates of `waggle run new` have Muon, though a step [costs a CPU more](#inner-optimizers). It was best at the
highest rate of the grid:

{optimizers}

Made by `.venv/bin/python -m bench.frontier_data`, then `.venv/bin/python -m bench.frontier`; the numbers are in
`bench/results/frontier.json`.
"""
