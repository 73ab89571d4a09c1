"""What a run would do, before it does any of it.

plan = make_plan(read_recipe("recipe.yaml"))
plan.problems  # why it cannot work; empty where `train` may start
plan_on_paper(recipe, memory=24_000_000_000, tflops=60.0)  # without the model's weights
"""

from fedsdr.jobs.plan.make import make_plan, plan_on_paper
from fedsdr.jobs.plan.shape import Plan, plan_json

__all__ = ["Plan", "make_plan", "plan_json", "plan_on_paper"]
