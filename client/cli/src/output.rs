//! Printing. A reader that has gone away (`peanut ring | head`) is no failure.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

/// Prints bytes as they are; on a terminal with a line's end.
pub(crate) fn print_bytes(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(bytes);
    if stdout.is_terminal() {
        let _ = stdout.write_all(b"\n");
    }
    let _ = stdout.flush();
}

pub(crate) fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

pub(crate) fn print_json(document: &impl Serialize) {
    let text = serde_json::to_string_pretty(document).unwrap_or_else(|error| format!("\"{error}\""));
    print_line(&text);
}

/// Prints rows as columns that are as wide as their widest cell.
pub(crate) fn print_table<const N: usize>(rows: &[[String; N]]) {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        print_line(cells.join("  ").trim_end());
    }
}
