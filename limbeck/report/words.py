"""What the page says in the same words of every run."""

TAUGHT = (
    "A teacher wrote out its reasoning on many problems. Every answer was checked against the known"
    " one, and a small model, the student, was trained on the solutions that held up: the recipe by"
    " which DeepSeek-R1 was distilled."
)
TAUGHT_ANSWERS = (
    "A teacher answered many problems. Every answer was checked against the known one, and a"
    " model, the student, was trained on those that held up."
)
ITSELF = (
    "A model answered many problems. Every answer was checked against the known one, and the model"
    " was trained on those of its own that held up."
)
ANSWERS = "A model learned from problems and their known answers."
TEXTS = "A model was trained on texts that come from outside this run."
LEARNING = (
    "A small model answered problems many times over. Every answer was checked by a rule, and what"
    " earned more than the model's other answers to the same question became likelier: the recipe"
    " by which DeepSeek-R1 learned to reason."
)
REWARDED = (
    "A model answered problems many times over, and what earned more than the model's other answers"
    " to the same question became likelier."
)
DISTRIBUTION = (
    "Small models, the students, learned to answer questions: some from the known answers alone,"
    " some from a teacher's whole distribution over the next token, which says of every word how"
    " likely it would have been."
)
EVALUATION = "Models answered problems whose answers are known, and every answer was checked."
TO_REASON = (
    "This page says how well the student reasons now, what it learned from, and what that cost."
)
TO_ANSWER = "This page says how well it answers now, what it learned from, and what that cost."
TO_GAIN = (
    "This page says how well it {} now, what there was to gain, how it learned, and what that cost."
)
TO_COME_CLOSE = (
    "This page says how close each came to the teacher, how likely it finds the known answers, what"
    " it answers, and what that cost."
)
TO_SOLVE = (
    "This page says how many each of them solves, how sure one can be of that, what became of the"
    " other answers, and what all of it cost."
)
LEARNED = {  # by how a model learned, and whether it thinks: what was done, and what the page says
    ("teacher", True): (TAUGHT, TO_REASON),
    ("teacher", False): (TAUGHT_ANSWERS, TO_ANSWER),
    ("itself", True): (ITSELF, TO_REASON.replace("the student", "it")),
    ("itself", False): (ITSELF, TO_ANSWER),
    ("answers", True): (ANSWERS, TO_REASON.replace("the student", "it")),
    ("answers", False): (ANSWERS, TO_ANSWER),
    ("texts", True): (TEXTS, TO_REASON.replace("the student", "it")),
    ("texts", False): (TEXTS, TO_ANSWER),
    ("rewards", True): (LEARNING, TO_GAIN.format("reasons")),
    ("rewards", False): (REWARDED, TO_GAIN.format("answers")),
    ("distribution", True): (DISTRIBUTION, TO_COME_CLOSE),
    ("distribution", False): (DISTRIBUTION, TO_COME_CLOSE),
    ("", True): (EVALUATION, TO_SOLVE),
    ("", False): (EVALUATION, TO_SOLVE),
}
LET_THROUGH = "A smaller one went on only where it was shown to have lost no more than it may."
SMALLER = (
    "This page says how well each model {}, how much smaller it became, what that lost, and what"
    " all of it cost."
)
MEANING = {  # of a reason, in the few words that fit a phone
    "correct": "the answer matches the known one",
    "wrong": "another answer than the known one",
    "unparsed": "no answer could be found in it",
    "truncated": "ran out of tokens before answering",
    "timeout": "checking it took too long",
    "bad_gold": "the known answer cannot be checked",
    "error": "could not be generated or judged",
    "malformed": "thinking and answer not told apart",
    "duplicate": "the same text was kept already",
    "near_duplicate": "almost the same text was kept already",
    "contaminated": "shares a run of words with an evaluation",
    "mixed_language": "thinks in several languages",
    "repetitive": "goes round in circles",
    "long_paragraph": "a wall of text",
    "code_block": "program code in its thinking",
    "broken_markup": "formulas that are never closed",
    "unfaithful": "its answer does not follow from its thinking",
    "too_short": "fewer tokens than wanted",
    "too_long": "more tokens than wanted",
    "longer": "its problem has shorter ones",
    "surplus": "its problem has enough others",
    "too_easy": "its problem is always solved",
    "too_hard": "its problem is never solved",
    "disagrees": "another answer than most give",
    "no_majority": "its problem's samples agree on nothing",
    "unaccounted": "dropped without a stated reason",
}
KEPT = {  # what a filter lets through
    "agreement": "agreeing with most",
    "at_most": "few of a problem",
    "correct": "right",
    "decontaminated": "in no evaluation",
    "deduplicate": "new",
    "difficulty": "of the wanted difficulty",
    "exact_duplicates": "new",
    "faithful": "true to their thinking",
    "finished": "finished",
    "length": "of the wanted length",
    "near_duplicates": "new",
    "not_repetitive": "not repetitive",
    "one_language": "in one language",
    "readable": "readable",
    "shortest": "the shortest",
    "well_formed": "well-formed",
}
