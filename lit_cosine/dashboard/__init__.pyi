from ._charts import layout_of as layout_of
from ._dashboard import Dashboard as Dashboard
from ._layout import write_hyperparameters as write_hyperparameters
from ._layout import write_layout as write_layout
from ._layout import write_success as write_success
from ._run_page import schedule_columns as schedule_columns
