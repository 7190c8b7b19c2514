//! Medians, as a table and as JSON.

use serde::{Deserialize, Serialize};

use crate::measure::{Sample, Work};
use crate::systems::Name;

/// The medians of one system at one kind of work.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    system: Name,
    work: Work,
    tasks: u32,
    keys_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    client_cpu_us: f64,
    server_cpu_us: f64,
}

impl Row {
    pub(crate) fn of(system: Name, work: Work, tasks: u32, samples: &[Sample]) -> Self {
        let median = |of: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
        };
        Row {
            system,
            work,
            tasks,
            keys_per_second: median(|sample| sample.keys_per_second),
            p50_us: median(|sample| sample.p50_us),
            p99_us: median(|sample| sample.p99_us),
            client_cpu_us: median(|sample| sample.client_cpu_us),
            server_cpu_us: median(|sample| sample.server_cpu_us),
        }
    }

    fn is_same_work(&self, other: &Row) -> bool {
        self.work == other.work && self.tasks == other.tasks
    }
}

/// Prints a table in Markdown; the last column is how many times a system's rate Peanut has.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "| work | tasks | system | keys/s | p50 us | p99 us | client CPU us/key | server CPU us/key | Peanut's rate to it |"
    );
    println!("|---|--:|---|--:|--:|--:|--:|--:|--:|");
    for row in rows {
        let ratio = ratio(rows, row);
        println!(
            "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} | {ratio} |",
            row.work,
            row.tasks,
            row.system,
            row.keys_per_second,
            row.p50_us,
            row.p99_us,
            row.client_cpu_us,
            row.server_cpu_us,
        );
    }
}

/// Peanut's rate to that of a row.
fn ratio(rows: &[Row], row: &Row) -> String {
    let peanut = rows.iter().find(|other| other.system == Name::Peanut && other.is_same_work(row));
    peanut.map_or_else(
        || "-".to_owned(),
        |peanut| format!("{:.2}", peanut.keys_per_second / row.keys_per_second),
    )
}

/// Prints Peanut's rates to the others' beside those on record: rates change with the machine, ratios less.
pub(crate) fn compare(rows: &[Row], recorded: &[Row]) {
    println!("\n| work | tasks | system | Peanut's rate to it | on record |");
    println!("|---|--:|---|--:|--:|");
    for row in rows.iter().filter(|row| row.system != Name::Peanut) {
        let before = recorded.iter().find(|other| other.system == row.system && other.is_same_work(row));
        let before = before.map_or_else(|| "-".to_owned(), |before| ratio(recorded, before));
        println!("| {} | {} | {} | {} | {before} |", row.work, row.tasks, row.system, ratio(rows, row));
    }
}
