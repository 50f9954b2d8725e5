"""Targets and callbacks for other libraries; each file needs its library only when it is used.

========================  ===========================================================================================
``transformers.Trainer``  ``DebugkitCallback`` of :mod:`debugkit.integrations.trainer_callback`; ``Target.from_trainer``
Lightning                 ``DebugkitCallback`` of :mod:`debugkit.integrations.lightning`; ``Target.from_lightning``
accelerate                nothing of its own: pass on what ``prepare`` returns, as below
========================  ===========================================================================================

With accelerate, after ``prepare`` and around the loop::

    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    target = Target(
        model,
        loader,
        optimizer=optimizer,
        scheduler=scheduler,
        accumulation_steps=accelerator.gradient_accumulation_steps,
    )
    debugkit.gate(target)
    with debugkit.watch(model, optimizer=optimizer):
        train(...)
"""
