//! Printing. A reader that has gone away (`peanut ring | head`) is no failure; a disk that is full is one.

use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use crate::FAILED;

/// Prints bytes as they are; on a terminal with a line's end.
pub(crate) fn print_bytes(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    let mut written = stdout.write_all(bytes);
    if stdout.is_terminal() {
        written = written.and_then(|()| stdout.write_all(b"\n"));
    }
    end_unless_written(written.and_then(|()| stdout.flush()));
}

/// Prints a text of this program's own.
pub(crate) fn print_text(text: &str) {
    let mut stdout = io::stdout().lock();
    end_unless_written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
}

/// Prints a line in which control characters are escaped: keys and messages of nodes may have any.
pub(crate) fn print_line(line: &str) {
    end_unless_written(writeln!(io::stdout(), "{}", escaped(line)));
}

pub(crate) fn print_json(document: &impl Serialize) {
    let text = serde_json::to_string_pretty(document).unwrap_or_else(|error| format!("\"{error}\""));
    end_unless_written(writeln!(io::stdout(), "{text}"));
}

/// Prints rows as columns that are as wide as their widest cell.
pub(crate) fn print_table<const N: usize>(rows: &[[String; N]]) {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    for row in &rows {
        let padded = |(cell, width): (&Cow<'_, str>, usize)| format!("{cell}{:1$}", "", width - cell.width());
        let cells: Vec<String> = row.iter().zip(widths).map(padded).collect();
        print_line(cells.join("  ").trim_end());
    }
}

/// Without control characters, which terminals go by.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let each =
        text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() });
    Cow::Owned(each.collect())
}

pub(crate) fn end_unless_written(written: io::Result<()>) {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("peanut: what was found could not be written: {error}");
            std::process::exit(FAILED.into());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_go_by_is_escaped() {
        assert_eq!(escaped("caf\u{e9} \u{1f95c}"), "caf\u{e9} \u{1f95c}");
        assert_eq!(escaped("a\u{1b}]0;x\u{7}b\n"), "a\\u{1b}]0;x\\u{7}b\\n");
    }
}
