"""The patterns of the detectors that look at any text, written once and rendered twice.

*Decoded*, for the characters that a JSON string stands for, and *raw*, for the JSON text itself, where a quote is
``\\"`` and a line break ``\\n``. The raw rendering is only a question: is it worth looking at all? It answers yes to
whatever the decoded one could find, and to every way of writing that could hide something from it: ``\\u00..`` for
ASCII, percent-encoding, HTML entities. So an ordinary message costs one pass over its bytes.

All matching is RE2's, so it is linear in the text whoever wrote it. Words in braces are the parts that differ between
the renderings. No pattern can match a NUL, which parts the strings of one message from each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .decoding import NAMES
from .linear import PatternSet, pattern_set
from .paths import FOLDED, LINE_NAMES

_DECODED: Final = {
    "s": r"[ \t\n\r\f]",
    "S": r"(?:[ \t\n\r\f+]|/\*[^*\x00]*\*+/)",
    "nl": r"[\r\n]",
    "cr": r"\r\n?",
    "q": "[\"'`]",
    "dq": '"',
    "/": "/",
    "b": r"\b",
    "start": r"(?:^|\x00)",
    "end": r"(?:$|\x00)",
    "sq": "[\"']",
    "line": "[^\"'`\\r\\n\\x00]*",
    # A literal in quotes, and what may follow the colon of a script's URL.
    "lit": "[\"'`][^\"'`\\r\\n\\x00]*[\"'`]",
    "sc": "[a-z0-9_$.([{/\"'`%;:!+~-]",
}
_RAW: Final = {
    "s": r"(?: |\\[tnrf])",
    "S": r"(?:[ +]|\\[tnrf]|\\?/\*[^*]*\*+\\?/)",
    "nl": r"\\[rn]",
    "cr": r"\\r(?:\\n)?",
    "q": "(?:\\\\\"|['`])",
    "dq": r'\\"',
    "/": r"\\?/",
    "b": "",
    "start": '"',
    "end": '"',
    "sq": "(?:\\\\\"|')",
    "line": r"""(?:[^"'`\\]|\\[^"nr])*""",
    "lit": r"""(?:\\"|['`])(?:[^"'`\\]|\\[^"nr])*(?:\\"|['`])""",
    "sc": r"[a-z0-9_$.([{/\\'`%;:!+~-]",
}

_HANDLERS: Final = (
    "abort|animation[a-z]+|auxclick|before[a-z]+|begin|blur|bounce|canplay[a-z]*|change|click|close|contextmenu|copy|"
    "cut|dblclick|drag[a-z]*|drop|end|ended|error|finish|focus[a-z]*|formdata|fullscreenchange|hashchange|input|"
    "invalid|key(?:down|press|up)|load[a-z]*|message|mouse[a-z]+|offline|online|page[a-z]+|paste|play[a-z]*|"
    "pointer[a-z]+|popstate|progress|ratechange|repeat|reset|resize|scroll[a-z]*|search|select[a-z]*|show|start|"
    "storage|submit|timeupdate|toggle|touch[a-z]+|transition[a-z]+|unhandledrejection|unload|volumechange|"
    "webkit[a-z]+|wheel"
)
_SPELLED: Final = {word: "{s}*".join(word) for word in ("javascript", "vbscript", "livescript")}
_HEADERS: Final = (
    "set-cookie2?|location|refresh|content-(?:type|length|encoding|disposition|security-policy)|transfer-encoding|"
    "x-[a-z][a-z-]*|access-control-[a-z-]+|strict-transport-security|mime-version|bcc"
)
_OPERAND: Final = "(?:[0-9]+|{lit}|true|null)"

TEXT: Final[dict[str, str]] = {
    "script-tag": r"<{s}*{/}?{s}*(?:[a-z]{{1,20}}{s}*:{s}*)?script{b}",
    "html-tag": (
        r"<(?:iframe|object|embed|applet|frameset|frame|base|isindex|bgsound|layer|ilayer|form|math|svg|portal)"
        r"(?:{s}|{/})+[a-z:-]+{s}*=|<meta(?:{s}|{/})[^>\x00]*http-equiv|<!(?:entity|element|attlist){s}"
        r"|<\?import{s}|<[a-z]{{0,20}}:vmlframe{b}|charset{s}*={s}*{q}?{s}*utf-?7{b}"
        r"|style{s}*=[^>\x00]*{b}(?:expression{s}*\(|behaviou?r{s}*:{s}*url)"
    ),
    "event-handler": (
        r"<(?:[a-z?!]|{/})[^>\x00]*(?:{s}|{/}|{q})on[a-z]{{3,25}}{s}*="
        r"|(?:{q}|{start})(?:{s}|{/})*on(?:" + _HANDLERS + r"){s}*="
    ),
    "script-url": (
        r"(?:" + "|".join(_SPELLED.values()) + r"){s}*:(?:{sc}|{s}+[a-z_$.]+{s}*[(\[=`])"
        r"|url{s}*\({s}*{q}?{s}*(?:java|vb)script{b}"
        r"|data:{s}*(?:text{/}(?:html|javascript|xml)|application{/}(?:xhtml\+xml|x?-?javascript))"
    ),
    "script-gadget": (
        r"{b}constructor{s}*\.{s}*constructor{s}*\(|\.{s}*(?:call|apply|bind){s}*`{s}*\$\{{"
        r"|(?:!\[\]|!!\[\]|\[\]){s}*\+{s}*(?:!\[\]|!!\[\]|\[\]){s}*[)+]"
    ),
    "sql-union": r"{b}union(?:{S}|\()+(?:(?:all|distinct)(?:{S}|\()+)?select{b}",
    "sql-tautology": (
        # A quote that ends the value before, then a comparison of two literals.
        r"{q}{S}*\)*{S}*(?:or|and|xor|having|where|\|\||&&){S}*\(*{S}*(?:not{S}+)?" + _OPERAND
        + r"{S}*\)*{S}*(?:=|<|>|!|{b}(?:like|rlike|regexp|in|is|between){b}){S}*[(=>]*{S}*(?:[0-9]|{q}|true|null|not)"
        # The same for a value without quotes.
        r"|{b}[0-9]+{S}*\)*{S}+(?:or|and|xor|having){S}+\(*{S}*" + _OPERAND
        + r"{S}*(?:=|<|>|!|{b}like{b}){S}*[=>]*{S}*(?:[0-9]|{q})"
        # The rest of the statement is made a comment, in a short value that ends a quoted one.
        r"|{q}{line}(?:--|;{S}*#){line}{end}"
        r"|{sq}(?:or|and|xor)(?:{sq}|\()[a-z0-9]|/\*![0-9]{{5}}"
    ),
    "sql-stacked": (
        r";{S}*(?:drop{S}+(?:table|database|schema|view|user|index|procedure|function){b}"
        r"|alter{S}+(?:table|database|user|role|login){b}|truncate{S}+table{b}|insert{S}+into{S}|delete{S}+from{S}"
        r"|update{S}+[a-z0-9_.\[\]]+{S}+set{S}|exec(?:ute)?(?:{S}|\()+(?:xp_|sp_|master)|shutdown{b}{S}*(?:;|--|with)"
        r"|declare{S}+@|create{S}+(?:table|database|user|role|procedure|function|trigger){b}|grant{S}+all{b}"
        r"|select{S}+(?:sleep|pg_sleep|benchmark|load_file){S}*\()"
    ),
    "sql-function": (
        r"(?:{b}(?:select|and|or|xor|union)|\|\||&&){S}*\(*{S}*sleep{S}*\({S}*[0-9]"
        r"|{b}(?:benchmark{S}*\({S}*[0-9x]+{S}*,|pg_sleep{S}*\(|waitfor{S}+(?:delay|time){S}*{q}|load_file{S}*\("
        r"|into{S}+(?:out|dump)file{S}*{q}|xp_(?:cmdshell|regread|regwrite|dirtree|fileexist|enumdsn)"
        r"|sp_(?:oacreate|makewebtask|execresultset|password){b}|utl_(?:http|inaddr|smtp|file){b}"
        r"|dbms_(?:pipe|lock|java|ldap|xmlgen){b}|extractvalue{S}*\(|updatexml{S}*\(|procedure{S}+analyse{S}*\("
        r"|lo_(?:import|export|get|put){S}*\(|pg_(?:read_file|ls_dir){S}*\(|sys_(?:eval|exec){S}*\(|db_name{S}*\("
        r"|(?:{q}|\|\||=|,|{b}in|{b}and|{b}or){S}*\({S}*select{b}|group_concat{S}*\(|ch(?:a)?r{S}*\({S}*[0-9]+{S}*(?:,{S}*[0-9]+{S}*)+\)|openrowset{S}*\(|unhex{S}*\()"
    ),
    "sql-catalog": (
        r"{b}(?:information_schema{b}|sys(?:objects|columns|databases|users){b}|all_tables{b}|user_tables{b}"
        r"|pg_(?:catalog|shadow|user|tables){b}|sqlite_(?:master|temp_master){b}|mysql\.(?:user|db){b}"
        r"|msys(?:objects|aces|queries){b}|sys\.(?:tables|columns|user_|all_))|@@(?:version|datadir|hostname|servername)"
    ),
    "header-injection": (
        r"{nl}{s}*(?:" + _HEADERS + r"){s}*:|{cr}[a-z][a-z0-9]*(?:-[a-z0-9]+)+:|{nl}HTTP{/}[0-9]"
    ),
    "terminal-escape": "[\\x1b\u0080-\u0084\u0086-\u009f]",
    "hidden-text": (
        "[\u202a-\u202e\u2066-\u2069]"
        # Tag characters, except where they spell the region of a flag behind U+1F3F4.
        "|(?:^|[^\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]"
    ),
}
"""By detector; the order is that in which findings of one string are told."""

CUTS: Final[dict[str, tuple[str, ...]]] = {
    "hidden-text": (
        "([\u202a-\u202e\u2066-\u2069]+)",
        "(?:^|[^\U0001f3f4\U000e0000-\U000e007f])([\U000e0000-\U000e007f]+)",
    ),
}
"""Of detectors whose match isn't all to be cut out: what is, as the group of each of these."""

ENCODED: Final = r"%[0-9a-f][0-9a-f]|%u[0-9a-f]{4}|&#|&(?:" + "|".join(sorted(NAMES)) + ")"
"""Other ways of writing a character, which a receiver may resolve; all of ``decoding``'s, and more."""


def _class(characters: Iterable[str]) -> str:
    return "[" + "".join(rf"\x{{{ord(character):x}}}" for character in characters) + "]"


# What is stripped from the ends of a path, and what counts as a plain dot or slash in it.
_BLANKS: Final = [chr(code) for code in range(0x10000) if chr(code).isspace()]
_FOLDED: Final = [character for character in FOLDED if not character.isascii()]
# RE2 takes these for s and k where case is ignored, and so does ``str.lower`` for the second.
_LIKE_ASCII: Final = ["\u017f", "\u212a"]
# Every character that some detector looks for may be an escape: U+0000 to U+00FF, U+2000 to U+20FF, tag characters,
# and those of the above that are elsewhere.
_ESCAPED: Final = r"\\u(?:00|20|db40|" + "|".join(
    sorted(f"{ord(character):04x}" for character in (*_BLANKS, *_FOLDED, *_LIKE_ASCII) if ord(character) > 0xFF)
) + ")"  # fmt: skip
_BLANK: Final = rf"(?:{_class(_BLANKS)}|\\[nrtf])"
_DOTS: Final = (  # the last two of a segment that may climb, or what may be dots or slashes
    rf'\.\.{_BLANK}*[/\\;"%&]|{_class(_FOLDED)}'
)
# A line break anywhere behind such a key: in its value, or in an array's that is its value.
_NAMED_LINES: Final = r'"(?:' + "|".join(sorted(LINE_NAMES)) + r')"[ \t\r\n]*:(?s:.*)\\[nr]'


def decoded(pattern: str) -> str:
    return pattern.format(**_DECODED)


def raw(pattern: str) -> str:
    return pattern.format(**_RAW)


def suspicion(*, absolute: bool, fields: bool) -> PatternSet:
    """What a raw message must hold before it is worth taking apart.

    Args:
        absolute: absolute paths matter, because there are roots.
        fields: the rules name fields that hold one line, so any line break does.
    """
    triggers = [raw(pattern) for pattern in TEXT.values()]
    triggers += [ENCODED, _ESCAPED, _DOTS, r"\\[nr]" if fields else _NAMED_LINES]
    if absolute:
        triggers.append(rf'"{_BLANK}*(?:\\?/|[a-z]:|\\\\|~|file:)')
    return pattern_set(["(?:" + ")|(?:".join(triggers) + ")"], ignore_case=True)
