"""The prompts of the paper's tasks are those of golden_prompts.md, and bad tasks are refused.

The rows are invented.
"""

import dataclasses
import json
import os
import pathlib
import re

import pytest
import seqio
import tensorflow as tf

from promot_t5x.tasks import few_shot, paper, toy_world, vocabularies

BYTES = seqio.ByteVocabulary()
WITH_SENTINEL = toy_world.WordVocabulary([vocabularies.SENTINEL])  # its tokens are not looked at
GOLDEN = pathlib.Path(__file__).with_name("golden_prompts.md")
REGENERATE = "PROMOT_REGENERATE_GOLDEN"
HEAD = f"""# Prompts of the paper's tasks

Made from the invented rows of paper_test.py and compared with what the tasks say now. To change them on purpose:
`{REGENERATE}=1 python -m pytest tests/tasks/paper_test.py -k golden`, then read the difference.
"""

# Columns of the wording between bars, in its order; exemplars come from above the line of dashes, questions from below.
RTE = """
The ferry to the island leaves at nine every morning. | A ferry sails to the island each day. | entailment
Anna Berg won the regional chess cup in 2011. | Anna Berg has never won a cup. | not_entailment
The museum closed its east wing for repairs in May. | The east wing of the museum was repaired. | entailment
Two villages share one post office by the bridge. | Each village has a post office of its own. | not_entailment
The baker sells rye bread only on Fridays. | Rye bread can be bought on Mondays. | not_entailment
---
The old lighthouse was sold to a painter last spring. | A painter bought the lighthouse. | entailment"""
SNLI = """
A man in a red coat is painting a fence. | A man is outdoors with a brush. | entailment
Three girls are racing on bicycles. | The girls are sisters. | neutral
A dog is asleep under a kitchen table. | The dog is chasing a cat. | contradiction
An old woman sells flowers at a corner. | The woman is saving for a trip. | neutral
A boy jumps from a pier into a lake. | A child gets wet. | entailment
---
Two cooks are slicing onions. | People are preparing food. | entailment"""
OPENBOOKQA = """
A plant on a sunny sill grows | toward the light | into the wall | without water | at night only | A
Which of these melts in a warm hand? | a coin | an ice cube | a pebble | a spoon | B
A thermometer is used to measure | weight | distance | temperature | speed | C
Which animal hatches from an egg? | a horse | a cow | a rabbit | a duck | D
A magnet would pull on | a paper cup | an iron nail | a cork | a candle | B
---
A fox grows a thick coat to | swim faster | hide food | keep warm | see better | C"""
CB = """
A: Did you like the hotel? B: I don't think we slept at all. | they slept at all | contradiction
Mara believed that the key was lost. It lay on the shelf. | the key was lost | contradiction
He knew that the shop had closed. He went home. | the shop had closed | entailment
If the bus comes early, Tom may miss it. | Tom will miss the bus | neutral
She noticed that the lamp was on. | the lamp was on | entailment
---
I hope they will mend the road before winter. | they will mend the road before winter | neutral"""
WIC = """
She sat on the bank of the river. | The bank lent them money. | bank | false
He ran to the station. | They ran across the field. | run | true
The play lasted two hours. | We saw a play by a young author. | play | true
Turn off the light. | The bag was light. | light | false
A bat flew out of the barn. | He swung the bat and missed. | bat | false
---
The key does not fit the lock. | He left his key at the office. | key | true"""
TRIVIA_QA = """
Which planet is known for its rings? | Saturn; Planet Saturn
What is the chemical symbol of gold? | Au; AU
Which instrument has 88 keys? | Piano; The piano; Pianoforte
Which ocean lies west of Portugal? | Atlantic Ocean; The Atlantic; Atlantic
How many sides has a hexagon? | 6; Six
---
Which city has a tower named after Gustave Eiffel? | Paris; City of Paris; Paris, France"""
WEB_QUESTIONS = """
what language do people speak in austria? | German
what are the colors of the italian flag? | Green; White; Red
where is the river seine? | France
who wrote the magic flute? | Wolfgang Amadeus Mozart
what is the capital of kenya? | Nairobi
---
what countries border andorra? | France; Spain"""
WMT = """
The shop is closed. | Le magasin est fermé. | Der Laden ist geschlossen. | Magazinul este închis.
My sister sings. | Ma sœur chante. | Meine Schwester singt. | Sora mea cântă.
We missed the train. | Nous avons raté le train. | Wir haben den Zug verpasst. | Am pierdut trenul.
The soup is hot. | La soupe est chaude. | Die Suppe ist heiß. | Supa este fierbinte.
It snowed in April. | Il a neigé en avril. | Im April hat es geschneit. | A nins în aprilie.
---
Cats sleep a lot. | Les chats dorment beaucoup. | Katzen schlafen sehr viel. | Pisicile dorm foarte mult."""
XSUM = """
Storms cut the power in four towns. Crews worked all night. | Four towns lost power in a storm.
The council voted for a new bridge. Work begins in June. | A new bridge will be built from June.
A bakery in Holm turned one hundred years old. | A bakery has celebrated its centenary.
The striker signed for two more years on Monday. | The striker has extended his contract.
Scientists counted more puffins on the cliffs this year. | Puffin numbers on the cliffs have risen.
---
The zoo has named its new tiger after a vote by children. | Children have named a tiger at the zoo."""
WIKI_LINGUA = """
Fill a pot with water. Heat it until it bubbles. Add the rice. | Boil water, then add the rice.
Take off the wheel. Find the hole. Glue a patch on it. | Remove the wheel and patch the hole.
Choose a quiet place. Sit upright. Breathe slowly. | Sit in a quiet place and breathe slowly.
Sort the clothes by colour. Pick a short programme. | Sort your clothes and choose a programme.
Dig a hole. Put the bulb in it. Cover it with soil. | Plant the bulb and cover it.
---
Wet the stain. Rub it with soap. Rinse it with cold water. | Rub the stain with soap and rinse it."""
XNLI_EN = """
The boy drinks water. | The boy drinks something. | entailment
The door is closed. | The door is open. | contradiction
She bought two books. | She bought a novel. | neutral
It rained all night. | It did not rain at night. | contradiction
My brother lives in Mombasa. | My brother lives in a town. | entailment
---
The teacher wrote on the board. | Someone wrote on the board. | entailment"""
XNLI_SW = """
Mvulana anakunywa maji. | Mvulana anakunywa kitu. | entailment
Mlango umefungwa. | Mlango uko wazi. | contradiction
Alinunua vitabu viwili. | Alinunua riwaya. | neutral
Mvua ilinyesha usiku kucha. | Usiku haukuwa na mvua. | contradiction
Kaka yangu anaishi Mombasa. | Kaka yangu anaishi mjini. | entailment
---
Mwalimu aliandika ubaoni. | Mtu aliandika ubaoni. | entailment"""
XNLI_ZH = """
男孩在喝水。 | 男孩在喝东西。 | entailment
门关着。 | 门开着。 | contradiction
她买了两本书。 | 她买了一本小说。 | neutral
雨下了一整夜。 | 夜里没有下雨。 | contradiction
我哥哥住在蒙巴萨。 | 我哥哥住在城里。 | entailment
---
老师在黑板上写字。 | 有人在黑板上写字。 | entailment"""


def _parse(text: str, *columns: int) -> dict[str, list[list[str]]]:
    """The rows of a table above, of all or some of its columns."""
    train, test = ([line.split(" | ") for line in part.strip().split("\n")] for part in text.split("---"))
    pick = columns or range(len(test[0]))
    return {split: [[row[i] for i in pick] for row in rows] for split, rows in (("train", train), ("test", test))}


ROWS = {
    "rte": _parse(RTE),
    "wmt14_enfr": _parse(WMT, 0, 1),
    "snli": _parse(SNLI),
    "openbookqa": _parse(OPENBOOKQA),
    "cb": _parse(CB),
    "wic": _parse(WIC),
    "trivia_qa": _parse(TRIVIA_QA),
    "web_questions": _parse(WEB_QUESTIONS),
    "wmt16_ende": _parse(WMT, 0, 2),
    "wmt16_enro": _parse(WMT, 0, 3),
    "xsum": _parse(XSUM),
    "wiki_lingua_en": _parse(WIKI_LINGUA),
    "xnli_en": _parse(XNLI_EN),
    "xnli_sw": _parse(XNLI_SW),
    "xnli_zh": _parse(XNLI_ZH),
}
CASES = [(name, k, False) for name in ROWS for k in (0, 1, 4)] + [("cb", k, True) for k in (0, 1, 4)]


class Invented(seqio.FunctionDataSource):
    """The rows of a table as a source of the task has them."""

    def __init__(self, name: str):
        wording = paper.TASKS[name].wording
        self.rows = {split: [self._row(wording, *cells) for cells in rows] for split, rows in ROWS[name].items()}
        super().__init__(self._read, splits=tuple(self.rows))

    @staticmethod
    def _row(wording, *cells):
        *columns, last = cells
        answer = {"label": wording.labels.index(last)} if wording.labels else {"answers": last.split("; ")}
        return json.dumps(dict(zip(re.findall(r"{(\w+)}", wording.template), columns, strict=True)) | answer)

    def _read(self, split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_tensor_slices({"row": self.rows[split]})

    def identity(self, split):
        return {"rows": self.rows[split]}


def _section(name: str, k: int, sentinels: bool) -> tuple[str, str]:
    """Heading and text of a task's prompt in the file."""
    task = dataclasses.replace(paper.text_task(name), source=Invented(name))
    prompting = few_shot.Prompting(WITH_SENTINEL if sentinels else BYTES, sentinels)
    dataset = few_shot.prompts(task.source.get_dataset("test"), task=task, prompting=prompting, shots=k, seed=0)
    (row,) = dataset.as_numpy_iterator()
    heading = f"## {name}, {k} exemplar{'' if k == 1 else 's'}" + (", for span corruption" if sentinels else "")
    prompt, target = row["inputs"].decode(), row["targets"].decode()
    return heading, f"\n```text\n{prompt}\n```\n\nTarget: `{target}`\n"


def test_golden_prompts():
    sections = dict(_section(*case) for case in CASES)
    if os.environ.get(REGENERATE):
        text = "\n".join([HEAD, *(f"{heading}\n{body}" for heading, body in sections.items())])
        GOLDEN.write_text(text, encoding="utf-8")
    parts = GOLDEN.read_text(encoding="utf-8").split("\n## ")
    golden = {"## " + heading: body.rstrip("\n") for heading, _, body in (part.partition("\n") for part in parts[1:])}
    assert list(golden) == list(sections), f"other sections; {REGENERATE}=1 writes {GOLDEN.name} anew"
    for heading, body in sections.items():
        message = f"{heading} differs from {GOLDEN.name}; if that is meant, {REGENERATE}=1 writes the file anew"
        assert body.rstrip("\n") == golden[heading], message
    assert parts[0] == HEAD


def test_summaries_are_of_the_first_1024_tokens_of_a_question():
    """B.4 of the paper cuts inputs of summarisation to 1,024 tokens; a byte is one token here; cuts are at words."""
    for name in ("xsum", "wiki_lingua_en"):
        task = dataclasses.replace(paper.text_task(name), source=LongArticle(name))
        prompting = few_shot.Prompting(BYTES, sentinels=False)
        dataset = few_shot.prompts(task.source.get_dataset("test"), task=task, prompting=prompting, shots=0, seed=0)
        (row,) = dataset.as_numpy_iterator()
        assert 1024 - len("word ") < len(row["inputs"]) <= 1024
        assert row["inputs"].startswith(b"Article: word word") and row["article_cut"]


class LongArticle(Invented):
    """The question of a table, its article 5,000 characters long."""

    def __init__(self, name: str):
        super().__init__(name)
        _, target = ROWS[name]["test"][0]
        self.rows["test"] = [self._row(paper.TASKS[name].wording, "word " * 1000, target)]


def _failing(folder, name="rte", vocabulary=BYTES, **kwargs):
    registered = paper.task(name, vocabulary, data_dir=str(folder), **kwargs)
    return lambda: seqio.TaskRegistry.get(registered).get_dataset(None, split="train", shuffle=False)


def _write(file, *rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_unknown_tasks_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match="paper.task.name is 'rtee': expected one of rte, wmt14_enfr, .*, xnli_zh"):
        paper.task("rtee", BYTES)


def test_missing_files_are_named_with_those_that_exist(tmp_path):
    read = _failing(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"Folder {tmp_path}/RTE of the task's JSONL files is not found"):
        read()
    _write(tmp_path / "RTE" / "dev.jsonl", {})
    with pytest.raises(
        FileNotFoundError, match="RTE/train.jsonl is not found; the JSONL files in its folder are dev.jsonl"
    ):
        read()


@pytest.mark.parametrize(
    "name,row,message",
    [
        ("cb", {"premise": "p", "label": 0}, "CB/train.jsonl line 1 has no column 'hypothesis', only premise, label"),
        ("openbookqa", {"question_stem": "q", "choices": {"text": ["a"]}}, "no column 'choices/text/1', only quest"),
        ("trivia_qa", {"question": "q", "answers": []}, "no column 'answers/0', only question, answers"),
        ("xsum", {"document": ["d"], "summary": "s"}, "column 'document': found \\['d'\\], expected text"),
        (
            "wic",
            {"sentence1": "", "sentence2": "", "word": "", "label": "yes"},
            "found 'yes', expected one of false, t",
        ),
    ],
)
def test_wrong_rows_are_named(tmp_path, name, row, message):
    _write(tmp_path / paper.TASKS[name].folder / "train.jsonl", row)
    with pytest.raises(ValueError, match=message):
        _failing(tmp_path, name)()


def test_exemplars_must_be_fewer_than_training_questions(tmp_path):
    rows = [{"premise": f"{i}", "hypothesis": "h", "label": i % 2} for i in (0, 1, 2, 2)]  # 2 twice is one question
    _write(tmp_path / "RTE" / "train.jsonl", *rows)
    with pytest.raises(ValueError, match="'rte' has 3 exemplars per prompt, but they are drawn from 3 "):
        _failing(tmp_path, shots=3)()
    assert len(list(_failing(tmp_path, shots=2)())) == 4
    with pytest.raises(ValueError, match="RTE has no split 'train', only test"):
        _failing(tmp_path, shots=1, splits={"test": "train.jsonl"})()


@pytest.mark.parametrize(
    "other",
    [{"data_dir": "elsewhere"}, {"data_dir": None}, {"splits": {"train": "all.jsonl"}}, {"sentinels": True}],
)
def test_one_name_is_one_task(other):
    arguments = {"data_dir": "here", "splits": None, "sentinels": False}
    assert {paper.task("rte", BYTES, **arguments) for _ in range(2)} == {"rte"}
    with pytest.raises(ValueError, match="Task 'rte' is already registered with other arguments"):
        paper.task("rte", BYTES, **{**arguments, **other})
    with pytest.raises(ValueError, match="Task 'rte' is already registered with other arguments"):
        paper.task("rte", "spm.model", **arguments)
    assert paper.task("rte", BYTES, **arguments, shots=1, exemplars="fixed") == "rte_1shot_seed0_fixed"


def test_sentinels_need_a_vocabulary_that_has_them(tmp_path):
    _write(tmp_path / "RTE" / "train.jsonl", {"premise": "p", "hypothesis": "h", "label": 0})
    with pytest.raises(ValueError, match="ByteVocabulary has no sentinel <extra_id_0>, which SENTINELS = True needs"):
        _failing(tmp_path, sentinels=True)()


def _t5(shared_dir, extra_ids):
    file = shared_dir / "data" / "spm" / "t5_cc_all_32000.model"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    return vocabularies.sentencepiece(str(file), extra_ids)


def test_sentinels_need_extra_ids_where_the_file_has_none(tmp_path, shared_dir):
    vocabulary = _t5(shared_dir, extra_ids=0)
    _write(tmp_path / "RTE" / "train.jsonl", {"premise": "p", "hypothesis": "h", "label": 0})
    with pytest.raises(
        ValueError, match="The vocabulary .*t5_cc_all_32000.model has no sentinel .* set EXTRA_IDS to 100"
    ):
        _failing(tmp_path, vocabulary=vocabulary, sentinels=True)()


@pytest.mark.parametrize("name", ("rte", "wmt16_enro", "xsum", "trivia_qa"))
def test_sentinels_precede_the_answer(shared_dir, name):
    vocabulary = _t5(shared_dir, extra_ids=100)
    (sentinel,) = vocabulary.encode("<extra_id_0>")
    task = dataclasses.replace(paper.text_task(name), source=Invented(name))
    task = seqio.TaskRegistry.get(few_shot.register(task, few_shot.Prompting(vocabulary, sentinels=True), shots=1))
    (row,) = task.get_dataset({"inputs": 256, "targets": 64}, split="test", shuffle=False).as_numpy_iterator()
    assert row["inputs"][-2:].tolist() == [sentinel, vocabulary.eos_id]
    assert row["targets"][[0, -1]].tolist() == [sentinel, vocabulary.eos_id]
    assert sentinel not in row["inputs"][:-2] and sentinel not in row["targets"][1:]
    output = vocabulary.decode(row["targets"].tolist())
    target = task.postprocess_fn("", example=row, is_target=True)
    for written in (output, f"{output} <extra_id_1> else", f"Well, {output} <extra_id_1> else <extra_id_0> else"):
        predicted = task.postprocess_fn(written, example=row, is_target=False)
        assert list(task.metric_fns[0]([target], [predicted]).values())[0] == pytest.approx(100), written
