"""What the contract's section 7 always refuses, and beside each rule what comes near it and has to pass."""

from __future__ import annotations

from typing import Any

import attrs

PARSE, INVALID, CONTENT = -32700, -32600, 422


@attrs.frozen
class Refused:
    """``id`` is that of the answer, as JSON reads it."""

    raw: bytes
    code: int
    id: Any = None


@attrs.frozen
class Passes:
    """``before`` + the client's id + ``after`` is the message; what is forwarded has another id in that place."""

    before: bytes
    id: bytes
    after: bytes

    @property
    def raw(self) -> bytes:
        return self.before + self.id + self.after


def call(params: bytes = b"{}", *, id: bytes = b"7", method: bytes = b'"m/x"') -> Passes:
    return Passes(b'{"jsonrpc":"2.0","id":', id, b',"method":%b,"params":%b}' % (method, params))


def bad(params: bytes, code: int = PARSE, id: Any = None) -> Refused:
    return Refused(call(params).raw, code, id)


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + closing * levels


OBJECTS = (b'{"a":', b"}")
DEEP_TAIL = b'{"jsonrpc":"2.0","id":7,"method":"m","params":[%b]}'

REFUSED: dict[str, Refused] = {
    # JSON that isn't well-formed, the whole of it
    "cut short": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m"', PARSE),
    "cut short in params": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":[1}}', PARSE),
    "trailing garbage": Refused(call().raw + b"x", PARSE),
    "two texts": Refused(call().raw + call().raw, PARSE),
    "two texts, a space between": Refused(call().raw + b" " + call().raw, PARSE),
    "a closing brace too many": Refused(call().raw + b"}", PARSE),
    "a trailing comma": bad(b'{"a":1,}'),
    "a trailing comma in an array": bad(b"[1,]"),
    "a comment": bad(b'{"a":1/**/}'),
    "single quotes": bad(b"{'a':1}"),
    "a bare key": bad(b"{a:1}"),
    "no colon": bad(b'{"a" 1}'),
    "NaN": bad(b"[NaN]"),
    "Infinity": bad(b"[Infinity]"),
    "-Infinity": bad(b"[-Infinity]"),
    "a leading zero": bad(b"[01]"),
    "a leading plus": bad(b"[+1]"),
    "no digit before the point": bad(b"[.5]"),
    "no digit after the point": bad(b"[1.]"),
    "hexadecimal": bad(b"[0x1]"),
    "an exponent without digits": bad(b"[1e]"),
    "True": bad(b"[True]"),
    "an unknown escape": bad(rb'["\x41"]'),
    "a short unicode escape": bad(rb'["\u41"]'),
    "a non-hex unicode escape": bad(rb'["\u00zz"]'),
    "an open string": bad(b'["a]'),
    "empty params": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","params":}', PARSE),
    # bytes
    "byte order mark": Refused(b"\xef\xbb\xbf" + call().raw, PARSE),
    "UTF-16": Refused(call().raw.decode().encode("utf-16-le"), PARSE),
    "a raw NUL between tokens": Refused(call().raw + b"\0", PARSE),
    "a raw NUL in a string": bad(b'["\0"]'),
    "a raw tab in a string": bad(b'["\t"]'),
    "a raw CR in a string": bad(b'["a\rb"]'),
    "a raw escape character": bad(b'["\x1b[31m"]'),
    "a form feed between tokens": bad(b"[\x0c1]"),
    "a no-break space between tokens": bad("[\u00a01]".encode()),
    "a line separator between tokens": bad("[\u20281]".encode()),
    # surrogates
    "a lone high surrogate": bad(rb'["\ud800"]'),
    "a lone low surrogate": bad(rb'["\udc00"]'),
    "a pair the wrong way round": bad(rb'["\ude00\ud83d"]'),
    "a high surrogate before a letter": bad(rb'["\ud83dx"]'),
    "a high surrogate before another escape": bad(rb'["\ud83d\u0041"]'),
    "a lone surrogate in a key": bad(rb'{"\ud800":1}'),
    "a lone surrogate in the method": Refused(call(method=rb'"\ud800"').raw, PARSE),
    "a lone surrogate in the id": Refused(call(id=rb'"\udfff"').raw, PARSE),
    "a lone surrogate deep down": bad(nested(20)[:20] + rb'"\uDBFF"' + nested(20)[20:]),
    # nesting
    "65 levels of arrays": bad(nested(64), INVALID, 7),
    "65 levels of objects": bad(OBJECTS[0] * 64 + b"1" + OBJECTS[1] * 64, INVALID, 7),
    "65 levels, then flat": bad(b"[%b,1]" % nested(63), INVALID, 7),
    "65 levels behind much that is flat": bad(b"[" + b"[]," * 5000 + nested(63) + b"]", INVALID, 7),
    "65 levels in an unknown member": Refused(
        b'{"jsonrpc":"2.0","id":7,"method":"m","x":%b}' % nested(64), INVALID, 7
    ),
    "65 levels, the id last": Refused(
        b'{"jsonrpc":"2.0","method":"m","params":%b,"id":7}' % nested(64), INVALID, 7
    ),
    "100,000 levels": bad(nested(100_000), INVALID, 7),
    "100,000 levels that never close": bad(b"[" * 100_000, INVALID, 7),
    "100,000 levels, the id last": Refused(
        b'{"jsonrpc":"2.0","method":"m","params":%b,"id":7}' % nested(100_000), INVALID, 7
    ),
    # the envelope's keys
    "method twice": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","method":"n"}', INVALID, 7),
    "method twice, the same": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","method":"m"}', INVALID, 7),
    "method twice, once escaped": Refused(rb'{"jsonrpc":"2.0","id":7,"method":"m","m\u0065thod":"n"}', INVALID, 7),
    "params twice": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","params":{},"params":[]}', INVALID, 7),
    "jsonrpc twice": Refused(b'{"jsonrpc":"2.0","jsonrpc":"2.0","id":7,"method":"m"}', INVALID, 7),
    "an unknown member twice": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","x":1,"x":1}', INVALID, 7),
    "Method beside method": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","Method":"n"}', INVALID, 7),
    "PARAMS alone": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","PARAMS":{}}', INVALID, 7),
    "Id alone": Refused(b'{"jsonrpc":"2.0","Id":7,"method":"m"}', INVALID),
    "JSONRPC alone": Refused(b'{"JSONRPC":"2.0","id":7,"method":"m"}', INVALID, 7),
    "a long s in result": Refused('{"jsonrpc":"2.0","id":7,"method":"m","re\u017fult":1}'.encode(), INVALID, 7),
    "an escaped variant": Refused(rb'{"jsonrpc":"2.0","id":7,"method":"m","\u0049d":8}', INVALID, 7),
    # what the envelope says
    "no version": Refused(b'{"id":7,"method":"m"}', INVALID, 7),
    "version 1.0": Refused(b'{"jsonrpc":"1.0","id":7,"method":"m"}', INVALID, 7),
    "version 2": Refused(b'{"jsonrpc":"2","id":7,"method":"m"}', INVALID, 7),
    "version as a number": Refused(b'{"jsonrpc":2.0,"id":7,"method":"m"}', INVALID, 7),
    "version null": Refused(b'{"jsonrpc":null,"id":7,"method":"m"}', INVALID, 7),
    "id null": Refused(call(id=b"null").raw, INVALID),
    "id true": Refused(call(id=b"true").raw, INVALID),
    "id an array": Refused(call(id=b"[7]").raw, INVALID),
    "id an object": Refused(call(id=b"{}").raw, INVALID),
    "id 1.0": Refused(call(id=b"1.0").raw, INVALID),
    "id 1.5": Refused(call(id=b"1.5").raw, INVALID),
    "id 1e2": Refused(call(id=b"1e2").raw, INVALID),
    "method a number": Refused(call(method=b"7").raw, INVALID, 7),
    "method null": Refused(call(method=b"null").raw, INVALID, 7),
    "method an array": Refused(call(method=b'["m"]').raw, INVALID, 7),
    "params null": bad(b"null", INVALID, 7),
    "params a string": bad(b'"{}"', INVALID, 7),
    "params a number": bad(b"1", INVALID, 7),
    "a method and a result": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","result":1}', INVALID, 7),
    "a method and an error": Refused(b'{"jsonrpc":"2.0","id":7,"method":"m","error":{}}', INVALID, 7),
    "neither": Refused(b'{"jsonrpc":"2.0","id":7}', INVALID, 7),
    "a result and an error": Refused(
        b'{"jsonrpc":"2.0","id":7,"result":1,"error":{"code":1,"message":"m"}}', INVALID
    ),
    "a response without an id": Refused(b'{"jsonrpc":"2.0","result":1}', INVALID),
    "an error that is none": Refused(b'{"jsonrpc":"2.0","id":7,"error":"m"}', INVALID),
    "a batch": Refused(b"[%b]" % call().raw, INVALID),
    "an empty batch": Refused(b"[]", INVALID),
    "a string": Refused(b'"x"', INVALID),
    "null": Refused(b"null", INVALID),
    # what the gateway reads in params
    "a tool's name twice": Refused(
        call(b'{"name":"a","name":"b","arguments":{}}', method=b'"tools/call"').raw, INVALID, 7
    ),
    "a tool's name in two spellings": Refused(
        call(b'{"name":"a","Name":"b"}', method=b'"tools/call"').raw, INVALID, 7
    ),
    "a progress token twice": bad(b'{"_meta":{"progressToken":1,"progressToken":2}}', INVALID, 7),
    # prototypes
    "__proto__": bad(b'{"__proto__":{}}', CONTENT, 7),
    "__proto__ with a string": bad(b'{"__proto__":"x"}', CONTENT, 7),
    "__proto__ escaped": bad(rb'{"\u005f\u005fproto\u005f\u005f":1}', CONTENT, 7),
    "__proto__ escaped in capitals": bad(rb'{"\u005F_pr\u006Fto__":1}', CONTENT, 7),
    "__proto__ in an array": bad(b'[[{"a":[{"__proto__":1}]}]]', CONTENT, 7),
    "__proto__ behind spaces": bad(b'{ \t"__proto__" \t: 1}', CONTENT, 7),
    "__proto__ as the second of two": bad(b'{"a":1,"a":{"__proto__":1}}', CONTENT, 7),
    "__proto__ as the first of two": bad(b'{"a":{"__proto__":1},"a":1}', CONTENT, 7),
    "__proto__ in arguments": Refused(
        call(b'{"name":"a","arguments":{"__proto__":{"admin":true}}}', method=b'"tools/call"').raw, CONTENT, 7
    ),
    "constructor.prototype": bad(b'{"constructor":{"prototype":{}}}', CONTENT, 7),
    "constructor.prototype, not first": bad(b'{"constructor":{"a":1,"prototype":{}}}', CONTENT, 7),
    "constructor.prototype escaped": bad(rb'{"c\u006fnstructor":{"prot\u006ftype":1}}', CONTENT, 7),
}  # fmt: skip

PASSES: dict[str, Passes] = {
    "no params": Passes(b'{"jsonrpc":"2.0","id":', b"7", b',"method":"m"}'),
    "the SDKs' order": Passes(b'{"method":"m","params":{},"jsonrpc":"2.0","id":', b"7", b"}"),
    "any order": Passes(b'{"params":{"id":8},"id":', b"7", b',"jsonrpc":"2.0","method":"m"}'),
    "an unknown member": Passes(b'{"jsonrpc":"2.0","id":', b"7", b',"method":"m","x":{"id":1}}'),
    "members that look like the envelope's": Passes(
        b'{"jsonrpc":"2.0","id":', b"7", b',"method":"m","methods":"n","id_":8,"param":{}}'
    ),
    "spaces and tabs everywhere": Passes(b' \t{ "jsonrpc" : "2.0" ,\t"id" : ', b"7", b' , "method":"m" } \t'),
    "an empty object": call(b"{}"),
    "an empty array": call(b"[]"),
    "an array": call(b"[1,null,true,false]"),
    # ids
    "id 0": call(id=b"0"),
    "id -1": call(id=b"-1"),
    "id -0": call(id=b"-0"),
    "id 2^53-1": call(id=b"9007199254740991"),
    "id 2^53+1": call(id=b"9007199254740993"),
    "id -2^63": call(id=b"-9223372036854775808"),
    "id 10^40": call(id=b"1" + b"0" * 40),
    "id of 5,000 digits": call(id=b"9" * 5000),
    "id a string": call(id=b'"7"'),
    "id an empty string": call(id=b'""'),
    "id with escapes": call(id=rb'"\u0037\"\\\/\b\f\n\r\t"'),
    "id null as a string": call(id=b'"null"'),
    "id in other scripts": call(id='"ü€😀\u202e"'.encode()),
    "id with an escaped pair": call(id=rb'"\ud83d\ude00"'),
    "id named __proto__": call(id=b'"__proto__"'),
    # methods
    "a method with escapes": call(method=rb'"to\u006fls\/x"'),
    "a method in other scripts": call(method='"méthode/😀"'.encode()),
    "a method named __proto__": call(method=b'"__proto__"'),
    "a method named constructor": call(method=b'"constructor"'),
    "a method in capitals": call(method=b'"METHOD"'),
    "a method of 2,000 characters": call(method=b'"' + b"m" * 2000 + b'"'),
    # escaped keys of the envelope: one key, one meaning
    "method's key escaped": Passes(b'{"jsonrpc":"2.0","id":', b"7", rb',"m\u0065thod":"m"}'),
    "id's key escaped": Passes(rb'{"jsonrpc":"2.0","\u0069d":', b"7", b',"method":"m"}'),
    "the version escaped": Passes(rb'{"jsonrpc":"\u0032.0","id":', b"7", b',"method":"m"}'),
    # texts
    "an escaped pair": call(rb'["\ud83d\ude00"]'),
    "an escaped pair in capitals": call(rb'["\uD83D\uDE00"]'),
    "a backslash before what looks like a surrogate": call(rb'["\\ud800"]'),
    "four bytes": call('["😀"]'.encode()),
    "the last code point": call("[\"\U0010ffff\"]".encode()),
    "a noncharacter": call('["\uffff"]'.encode()),
    "an escaped NUL": call(rb'["\u0000"]'),
    "escaped control characters": call(rb'["\u001b[31m\n\r\t"]'),
    "DEL": call(b'["\x7f"]'),
    "C1 controls": call('["\u0085\u009b"]'.encode()),
    "line separators in a string": call('["\u2028\u2029"]'.encode()),
    "a byte order mark in a string": call('["\ufeff"]'.encode()),
    "a byte order mark as a key": call('{"\ufeff":1}'.encode()),
    "all escapes": call(rb'["\"\\\/\b\f\n\r\t\u00e9"]'),
    "an empty key": call(b'{"":1,"_meta":{}}'),
    # numbers, which are text to the gateway
    "1e400": call(b"[1e400,-1e400,1e-400]"),
    "-0": call(b"[-0,-0.0,0e0,0E+5]"),
    "5,000 digits": call(b"[" + b"9" * 5000 + b"]"),
    "5,000 decimals": call(b"[0." + b"1" * 5000 + b"]"),
    "a huge exponent": call(b"[1e99999999999999999999]"),
    # nesting
    "64 levels of arrays": call(nested(63)),
    "64 levels of objects": call(OBJECTS[0] * 63 + b"1" + OBJECTS[1] * 63),
    "64 levels and much that is flat": call(b"[" + b"[]," * 5000 + nested(62) + b"]"),
    "brackets in strings": call(b'["' + b"[{" * 500 + b'"]'),
    "brackets and escaped quotes in strings": call(b'["' + rb"\"[\\{" * 500 + b'"]'),
    # keys that come twice where nobody reads them
    "a key twice in params": call(b'{"a":1,"a":2}'),
    "a key twice in arguments": call(b'{"name":"a","arguments":{"b":1,"b":2}}', method=b'"tools/call"'),
    "a key in two spellings in params": call(b'{"a":1,"A":2}'),
    "the envelope's keys in params": call(b'{"id":1,"method":"n","jsonrpc":"1.0","params":null}'),
    # near a prototype
    "__proto": call(b'{"__proto":1,"proto__":1,"_proto_":1,"___proto__":1,"__proto__x":1}'),
    "__PROTO__": call(b'{"__PROTO__":1}'),
    "__proto__ as a value": call(b'{"a":"__proto__","b":["__proto__"]}'),
    "__proto__ in a longer value": call(rb'{"a":"\"__proto__\":1"}'),
    "an escaped backslash before it": call(rb'{"\\u005f_proto__":1}'),
    "constructor alone": call(b'{"constructor":"x"}'),
    "constructor with other members": call(b'{"constructor":{"a":1,"prototypes":2}}'),
    "prototype alone": call(b'{"prototype":{"a":1}}'),
    "prototype around constructor": call(b'{"prototype":{"constructor":1}}'),
    "prototype beside constructor": call(b'{"constructor":{},"prototype":{}}'),
    "prototype as a value": call(b'{"constructor":{"a":"prototype"}}'),
}  # fmt: skip
