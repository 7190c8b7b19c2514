//! Counts the instructions of the parts under valgrind, and compares them with those on record.
//!
//! A count is the same in each run of one binary, so the record holds for one version of the compiler and one
//! kind of processor; with others there is nothing to compare.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::parts::PARTS;

/// How much a part may grow before the command fails.
const TOLERANCE: f64 = 1.05;
/// Has the C library copy memory in the way that every processor of the kind knows.
const PLAIN_PROCESSOR: &str =
    "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM";
/// Turns of a part in the two runs whose difference counts.
const TURNS: [u32; 2] = [50, 550];

/// What is committed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    rustc: String,
    processor: String,
    /// Instructions of one operation.
    instructions: BTreeMap<String, f64>,
}

/// Counts, and compares with the file; with `record` it writes the counts there instead.
pub(crate) fn count(path: &Path, record: bool) -> Result<(), String> {
    let binary = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut instructions = BTreeMap::new();
    for (name, operations, _) in PARTS {
        let [few, many] =
            [instructions_of(&binary, name, TURNS[0])?, instructions_of(&binary, name, TURNS[1])?];
        let turn = (many - few) as f64 / f64::from(TURNS[1] - TURNS[0]);
        instructions.insert(name.to_owned(), (turn / f64::from(operations) * 10.0).round() / 10.0);
    }
    let rustc = Command::new("rustc").arg("--version").output().map_err(|e| format!("rustc: {e}"))?;
    let rustc = String::from_utf8_lossy(&rustc.stdout).trim().to_owned();
    let counted = Record { rustc, processor: std::env::consts::ARCH.to_owned(), instructions };
    if record {
        let text = serde_json::to_string_pretty(&counted).map_err(|e| e.to_string())?;
        return std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()));
    }
    let known = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    compare(&counted, known.as_ref())
}

fn compare(counted: &Record, known: Option<&Record>) -> Result<(), String> {
    let comparable =
        known.filter(|known| (&known.rustc, &known.processor) == (&counted.rustc, &counted.processor));
    let mut grown = Vec::new();
    for (name, count) in &counted.instructions {
        let before = comparable.and_then(|known| known.instructions.get(name));
        println!(
            "{count:>8.1}  {:>8}  {name}",
            before.map_or("-".to_owned(), |before| format!("{before:.1}"))
        );
        if before.is_some_and(|before| *count > before * TOLERANCE) {
            grown.push(name.as_str());
        }
    }
    match known {
        Some(known) if comparable.is_none() => {
            println!("nothing to compare with: the record is of {} on {}", known.rustc, known.processor);
        }
        None => println!("there is no record; write one with `--record`"),
        Some(_) => {}
    }
    if grown.is_empty() {
        return Ok(());
    }
    Err(format!("instructions have grown by more than 5 %: {}", grown.join(", ")))
}

/// The instructions of a run, as callgrind says them at its end.
fn instructions_of(binary: &Path, part: &str, turns: u32) -> Result<u64, String> {
    let mut valgrind = Command::new("valgrind");
    valgrind.env("GLIBC_TUNABLES", PLAIN_PROCESSOR);
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(binary).arg(part);
    let run = valgrind.arg(turns.to_string()).output().map_err(|e| format!("valgrind: {e}"))?;
    let said = String::from_utf8_lossy(&run.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let count = collected.and_then(|(_, count)| count.trim().parse().ok());
    count.ok_or_else(|| format!("valgrind gave no count of `{part}`: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rustc: &str, count: f64) -> Record {
        let instructions = [("part".to_owned(), count)].into();
        Record { rustc: rustc.to_owned(), processor: "p".to_owned(), instructions }
    }

    #[test]
    fn more_than_five_in_a_hundred_is_a_failure_and_another_compiler_is_not() {
        let known = record("1", 100.0);
        assert!(compare(&record("1", 104.9), Some(&known)).is_ok());
        assert!(compare(&record("1", 90.0), Some(&known)).is_ok());
        assert!(compare(&record("1", 105.1), Some(&known)).is_err());
        assert!(compare(&record("2", 200.0), Some(&known)).is_ok());
        assert!(compare(&record("1", 200.0), None).is_ok());
    }
}
