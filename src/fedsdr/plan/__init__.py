"""What a run would do, before it does any of it.

plan = make_plan(read_recipe("recipe.yaml"))
plan.problems  # why it cannot work; empty where `train` may start
"""

from fedsdr.plan.make import make_plan
from fedsdr.plan.shape import Plan, plan_json

__all__ = ["Plan", "make_plan", "plan_json"]
