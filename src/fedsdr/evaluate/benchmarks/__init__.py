"""Public benchmarks by the papers' protocol, from local files.

    files.py       which file is which; rows, checked
    readers.py     how each file becomes questions
    tasks.py       the eight benchmarks
    prompts.py     raw few-shot text, and which shots fit
    grading.py     what counts as right
    answerer.py    who answers: a model with adapters, or a script with known answers
    candidates.py  which models of a run are scored
    answers.py     answers kept on disk, so that scoring again needs no model
    session.py     one benchmark, one model
    run.py         several benchmarks, several models
    forgetting.py  what an adapter made the base forget
    results.py     the figures as a file that others can merge

Nothing here knows a run: `fedsdr.jobs.evaluate.evaluate_tasks` puts run and benchmarks together.
"""
