"""Diffusion in five parts that combine freely, all written in alpha and sigma; no part knows a net.

    schedule = SCHEDULES["cosine"]  # z = alpha(t) x + sigma(t) eps, t from 0 (clean) to 1
    check(schedule, "eps")  # what a network predicts, and whether that schedule allows it
    t_B = TIMES["logit_normal"](u_B, schedule)  # u_B uniform in (0, 1), one a row
    out = network(q_sample(schedule, x0, eps, t_B), t_B)
    square = jnp.square(out - target("eps", schedule, x0, eps, t_B)).mean((1, 2, 3))
    loss = (loss_weight("min_snr_5", "eps", schedule, t_B) * square).mean()
    both = lambda z, t_B: tuple(to_x0("eps", schedule, z, t_B, out) for out in two_branches(z, t_B))
    x0 = solve(guide(both, 3.0), schedule, "dpmpp_2m", trailing(25), noise, keys_B)

A weighting is a function of log-SNR on ``|x0 - x0_hat|^2`` and knows no prediction; a solver sees a
denoiser ``(z, t_B) -> x0`` alone; guidance makes one denoiser of two branches.
"""
