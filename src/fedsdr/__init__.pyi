"""The names that `import fedsdr` offers, and where they live: the one list of them."""

from fedsdr.algorithms.fedsd import boosted as boosted
from fedsdr.algorithms.registry import make_algorithm as make_algorithm
from fedsdr.coordinator.job import Watch as Watch
from fedsdr.data.formats import read_table as read_table
from fedsdr.data.partition import PartitionSpec as PartitionSpec
from fedsdr.data.partition import partition as partition
from fedsdr.errors import FedsdrError as FedsdrError
from fedsdr.evaluate.comparison import compare as compare
from fedsdr.evaluate.finished import read_results as read_results
from fedsdr.jobs.assembly import assemble as assemble
from fedsdr.jobs.distill import rewrite as rewrite
from fedsdr.jobs.distill import rewrite_file as rewrite_file
from fedsdr.jobs.evaluate import evaluate_tasks as evaluate_tasks
from fedsdr.jobs.evaluate import merge_evaluations as merge_evaluations
from fedsdr.jobs.evaluate import score as score
from fedsdr.jobs.export.chat import open_chat as open_chat
from fedsdr.jobs.export.folder import export_adapter as export_adapter
from fedsdr.jobs.export.merge import merge as merge
from fedsdr.jobs.lm_eval import evaluate_lm_eval as evaluate_lm_eval
from fedsdr.jobs.plan import make_plan as make_plan
from fedsdr.jobs.plan import plan_on_paper as plan_on_paper
from fedsdr.jobs.train import resume as resume
from fedsdr.jobs.train import run as run
from fedsdr.parts.algorithm import Algorithm as Algorithm
from fedsdr.parts.algorithm import Stage as Stage
from fedsdr.parts.algorithm import Term as Term
from fedsdr.parts.views import Mixed as Mixed
from fedsdr.parts.views import Raw as Raw
from fedsdr.parts.views import Rewritten as Rewritten
from fedsdr.recipe.settings import Recipe as Recipe
from fedsdr.recipe.settings import build_recipe as build_recipe
from fedsdr.recipe.settings import dump_recipe as dump_recipe
from fedsdr.recipe.settings import parse_recipe as parse_recipe
from fedsdr.recipe.settings import read_recipe as read_recipe
from fedsdr.types import ClientData as ClientData
from fedsdr.types import Example as Example

__version__: str
