//! `peanut top`: a fleet on a screen that is drawn anew every second.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use peanut_client::Client;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::failure::Failure;
use crate::fleet::{Look, Rates, health, percent, short, short_bytes, short_time, sum};
use crate::stat::uptime;
use crate::{FAILED, fail};

const HOT_KEYS: u32 = 20;
const EVERY: Duration = Duration::from_secs(1);

/// Draws until `q`, escape or ctrl-C.
pub(crate) async fn run(client: &Client, fleet: &str) -> Result<ExitCode, Failure> {
    if !std::io::stdout().is_terminal() {
        return Ok(fail("top draws on a terminal; `peanut stat` and `peanut nodes` print lines"));
    }
    let mut terminal = match ratatui::try_init() {
        Ok(terminal) => terminal,
        Err(error) => return Ok(fail(&format!("the terminal cannot be drawn on: {error}"))),
    };
    let has_color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (keys, mut pressed) = mpsc::channel(8);
    // Reading keys blocks, so it has a thread, which ends with the process.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if keys.blocking_send(event).is_err() {
                return;
            }
        }
    });
    let mut before = Look::take(client, 0).await;
    sleep(Duration::from_millis(200)).await;
    let mut look = Look::take(client, HOT_KEYS).await;
    let code = loop {
        let screen = Screen { fleet, look: &look, before: &before, has_color };
        if terminal.draw(|frame| screen.draw(frame)).is_err() {
            break ExitCode::from(FAILED);
        }
        // A node that is silent holds up the next picture, but no key.
        let next = async {
            sleep(EVERY).await;
            Look::take(client, HOT_KEYS).await
        };
        tokio::select! {
            () = until_end(&mut pressed) => break ExitCode::SUCCESS,
            next = next => before = std::mem::replace(&mut look, next),
        }
    };
    ratatui::restore();
    Ok(code)
}

/// Waits until a key is pressed that ends it, or the terminal has gone.
async fn until_end(pressed: &mut mpsc::Receiver<Event>) {
    while let Some(event) = pressed.recv().await {
        if let Event::Key(key) = event
            && ends(key.code, key.modifiers)
        {
            return;
        }
    }
}

fn ends(code: KeyCode, modifiers: KeyModifiers) -> bool {
    let is_interrupt = code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL);
    is_interrupt || matches!(code, KeyCode::Char('q') | KeyCode::Esc)
}

/// A name that takes what room there is, and columns beside it: 80 in all, with one between any two.
fn widths<const N: usize>(name: u16, columns: [u16; N]) -> Vec<Constraint> {
    debug_assert!(name + columns.iter().sum::<u16>() + N as u16 <= 80);
    std::iter::once(Constraint::Min(name)).chain(columns.map(Constraint::Length)).collect()
}

/// What is drawn.
struct Screen<'a> {
    fleet: &'a str,
    look: &'a Look,
    before: &'a Look,
    has_color: bool,
}

impl Screen<'_> {
    fn draw(&self, frame: &mut Frame<'_>) {
        let rates = self.look.since(self.before);
        let (nodes, groups) = (self.look.nodes.len() as u16, self.look.group_names().len() as u16);
        let heights = [
            Constraint::Length(1),
            Constraint::Length(nodes.min(30) + 3),
            Constraint::Length(groups.min(20) + 3),
            Constraint::Min(4),
            Constraint::Length(1),
        ];
        let [heading, of_nodes, of_groups, of_keys, footing] = Layout::vertical(heights).areas(frame.area());
        let total = sum(rates.iter().map(|(_, _, rates)| *rates));
        frame.render_widget(self.heading(total), heading);
        frame.render_widget(self.nodes(&rates), of_nodes);
        frame.render_widget(self.groups(&rates), of_groups);
        frame.render_widget(self.keys(), of_keys);
        frame.render_widget(Paragraph::new(" q quit").style(self.style(Color::DarkGray)), footing);
    }

    fn heading(&self, total: Rates) -> Paragraph<'_> {
        let Look { nodes, ring_version, .. } = self.look;
        let up = self.look.up();
        let color = if up == nodes.len() { Color::Green } else { Color::Red };
        Paragraph::new(Line::from(vec![
            Span::styled(" peanut ", Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!("{}, ring {ring_version}, ", self.fleet)),
            Span::styled(format!("{up} of {} nodes up", nodes.len()), self.style(color)),
            Span::raw(format!(
                ", {} gets/s, {} hits, {} loads/s",
                short(total.gets),
                percent(total.hit_ratio()),
                short(total.loads)
            )),
        ]))
    }

    fn nodes(&self, rates: &[(String, String, Rates)]) -> Table<'_> {
        let rows = self.look.nodes.iter().map(|(node, report)| {
            let rates = sum(rates.iter().filter(|(id, ..)| *id == node.id).map(|(.., rates)| *rates));
            let word = health(node, report);
            let color = match word {
                "up" => Color::Green,
                "up, no lease" | "not ready" | "no report" => Color::Yellow,
                _ => Color::Red,
            };
            let told = report.as_ref().ok();
            let used = told.map(|report| report.groups.iter().map(|group| group.used_bytes).sum());
            Row::new([
                Cell::new(node.id.clone()),
                Cell::new(word).style(self.style(color)),
                Cell::new(format!("{:.1}%", node.share * 100.0)),
                Cell::new(told.map_or("-".to_owned(), |report| uptime(report.uptime))),
                Cell::new(told.map_or("-".to_owned(), |_| short(rates.gets))),
                Cell::new(percent(rates.hit_ratio())),
                Cell::new(told.map_or("-".to_owned(), |_| short(rates.loads))),
                Cell::new(used.map_or("-".to_owned(), short_bytes)),
                Cell::new(told.map_or("-".to_owned(), |report| report.lanes.to_string())),
            ])
        });
        let widths = widths(15, [12, 5, 7, 6, 6, 7, 9, 5]);
        self.table(
            "Nodes",
            ["NODE", "HEALTH", "SHARE", "UP FOR", "GETS/S", "HITS", "LOADS/S", "MEMORY", "LANES"],
            rows.collect(),
            &widths,
        )
    }

    fn groups(&self, rates: &[(String, String, Rates)]) -> Table<'_> {
        let rows = self.look.group_names().into_iter().map(|name| {
            let of_group =
                || self.look.groups().filter(|(_, group)| group.name == name).map(|(_, group)| group);
            let rates = sum(rates.iter().filter(|(_, group, _)| *group == name).map(|(.., rates)| *rates));
            let trouble = of_group().map(|group| group.breaker.as_str()).find(|breaker| *breaker != "closed");
            let (origin, color) = trouble.map_or(("good", Color::Green), |breaker| (breaker, Color::Red));
            let used: u64 = of_group().map(|group| group.used_bytes).sum();
            let capacity: u64 = of_group().map(|group| group.capacity_bytes).sum();
            Row::new([
                Cell::new(name.clone()),
                Cell::new(short(rates.gets)),
                Cell::new(percent(rates.hit_ratio())),
                Cell::new(short(rates.loads)),
                Cell::new(short_time(rates.load_time())),
                Cell::new(short(rates.errors)),
                Cell::new(short(of_group().map(|group| group.entries).sum::<u64>() as f64)),
                Cell::new(short_bytes(used)),
                Cell::new(percent((capacity > 0).then(|| used as f64 / capacity as f64))),
                Cell::new(origin.to_owned()).style(self.style(color)),
            ])
        });
        let widths = widths(10, [6, 6, 7, 6, 5, 7, 9, 6, 9]);
        self.table(
            "Groups",
            ["GROUP", "GETS/S", "HITS", "LOADS/S", "LOAD", "ERR/S", "ENTRIES", "MEMORY", "FULL", "ORIGIN"],
            rows.collect(),
            &widths,
        )
    }

    fn keys(&self) -> Table<'_> {
        let hot = self.look.hot_keys().into_iter();
        let rows = hot.map(|hot| {
            let (rate, near) = (short(hot.gets_per_second), hot.near_copies.to_string());
            Row::new([rate, near, hot.group, hot.key, hot.node])
        });
        let widths = [6, 4].map(Constraint::Length).into_iter().chain([12, 20, 15].map(Constraint::Min));
        let widths: Vec<_> = widths.collect();
        let heading = ["GETS/S", "NEAR", "GROUP", "KEY", "NODE"];
        self.table("Hot keys, last five seconds", heading, rows.collect(), &widths)
    }

    fn table<'a, const N: usize>(
        &self,
        title: &'a str,
        heading: [&'static str; N],
        rows: Vec<Row<'a>>,
        widths: &[Constraint],
    ) -> Table<'a> {
        let heading = Row::new(heading).style(self.style(Color::DarkGray));
        let block = Block::new().borders(Borders::TOP).title(title);
        Table::new(rows, widths.to_vec()).header(heading).block(block)
    }

    fn style(&self, color: Color) -> Style {
        if self.has_color { Style::new().fg(color) } else { Style::new() }
    }
}
