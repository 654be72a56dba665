//! What templates expect of Python: its dates and its JSON.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::template::Limited;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

const DAY_SECONDS: u64 = 86_400;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
/// Longest JSON that a template can make of a value.
const JSON_BYTES_MAX: usize = 1 << 20;
/// Widest indentation of JSON.
const INDENT_MAX: usize = 16;

/// `strftime_now(format)`: the time now, in UTC.
pub(super) fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    strftime(format, now.map_or(0, |since| since.as_secs()))
}

/// Formats seconds since 1970; directives that are not known stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
    let days = seconds / DAY_SECONDS;
    let (year, month, day) = civil(days);
    let weekday = WEEKDAYS[((days + 3) % 7) as usize]; // 1970 began on a Thursday
    let month_name = MONTHS[(month - 1) as usize];
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('H') => out += &format!("{hour:02}"),
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day counted from 1970, by the calendar of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // from the first of March of the year 0
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// `value | tojson(indent=n)`: as Python's `json.dumps`, with characters as they are.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = match indent {
        None => dump(value, Spaced)?,
        Some(width) => {
            let spaces = " ".repeat(width.min(INDENT_MAX));
            dump(value, PrettyFormatter::with_indent(spaces.as_bytes()))?
        }
    };
    Ok(Value::from(json))
}

fn dump(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let fault = |why: String| Error::new(ErrorKind::BadSerialization, why);
    let mut out = Limited::new(JSON_BYTES_MAX);
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter)).map_err(|error| fault(error.to_string()))?;
    String::from_utf8(out.into_bytes()).map_err(|error| fault(error.to_string()))
}

/// JSON on one line as Python spaces it: `{"a": [1, 2]}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_python() {
        let all = "%Y-%m-%d %H:%M:%S %a %A %d %b %B %y %% %q %";
        // python3: time.strftime(.., time.gmtime(..))
        assert_eq!(strftime(all, 1_709_210_096), "2024-02-29 12:34:56 Thu Thursday 29 Feb February 24 % %q %");
        assert_eq!(strftime("%d %b %Y %a", 0), "01 Jan 1970 Thu");
        assert_eq!(strftime("%d %b %Y %a", 4_107_542_399), "28 Feb 2100 Sun");
    }
}
