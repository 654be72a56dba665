//! What a parser says of bytes that it cannot read, without quoting them: its errors go to logs and to clients.

use std::fmt::Display;

/// Longest name of a field that is repeated.
const NAME_CHARS_MAX: usize = 64;
/// Longest text of an error.
const CHARS_MAX: usize = 200;
/// What stands between what was found and what was expected; the latter is always ours.
const EXPECTED: &str = ", expected ";

/// An error of serde without the values it quotes. Fields keep their names: those that are known are ours, and of an
/// unknown one the sender must learn which it is.
pub(crate) fn unquoted(error: &impl Display) -> String {
    let text = error.to_string();
    let told = match text.strip_prefix("unknown field `") {
        Some(rest) => unknown_field(rest),
        None if text.starts_with("missing field `") || text.starts_with("duplicate field `") => text,
        None => without_value(&text),
    };
    told.chars().take(CHARS_MAX).collect()
}

fn unknown_field(rest: &str) -> String {
    let end = rest.rfind("`, expected ").or_else(|| rest.rfind("`, "));
    let (name, expected) = rest.split_at(end.unwrap_or(rest.len()));
    let name: String = name.chars().take(NAME_CHARS_MAX).collect();
    format!("unknown field `{name}{expected}")
}

fn without_value(text: &str) -> String {
    let Some(quote) = text.find(['"', '`']) else { return text.to_owned() };
    let found = text[..quote].trim_end();
    match text.rfind(EXPECTED) {
        Some(expected) if expected > quote => format!("{found}{}", &text[expected..]),
        _ => found.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_told_and_fields_are() {
        let told = |text: &str| unquoted(&text);
        assert_eq!(
            told(r#"invalid type: string "my, expected secret", expected u32 at line 1 column 9"#),
            "invalid type: string, expected u32 at line 1 column 9"
        );
        assert_eq!(told("invalid type: integer `7`, expected a string"), "invalid type: integer, expected a string");
        assert_eq!(
            told("unknown variant `secret`, expected one of `a`, `b`"),
            "unknown variant, expected one of `a`, `b`"
        );
        assert_eq!(told("something odd \"secret\""), "something odd");
        assert_eq!(told("missing field `input` at line 1 column 2"), "missing field `input` at line 1 column 2");
        assert_eq!(
            told("EOF while parsing a value at line 1 column 0"),
            "EOF while parsing a value at line 1 column 0"
        );
        let long = format!("unknown field `{}`, expected `b`", "\u{fc}".repeat(500));
        assert_eq!(told(&long), format!("unknown field `{}`, expected `b`", "\u{fc}".repeat(64)));
        assert_eq!(told("unknown field `colour`, there are no fields"), "unknown field `colour`, there are no fields");
    }
}
