//! What a person reads.

use std::time::Duration;

use super::{
    report::{Played, Report},
    step::Step,
    world::World,
};

/// Characters of the columns: what is played, what is sent, what the bot does, what the platform sees. With the number, the
/// time and the verdict a line has 120.
const WIDTHS: [usize; 4] = [17, 20, 27, 30];
const HEADS: [&str; 4] = ["step", "sent", "the bot", "the platform saw"];

/// Where to look next.
const NEXT: &str = "\n\nTo try things yourself, --serve leaves all of this running. For programs there is --json. \
                    RUST_LOG=info shows the log.";

/// Lays out lines. With colours where a terminal shows them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    colours: bool,
}

impl Table {
    pub(super) fn new(colours: bool) -> Self {
        Self { colours }
    }

    pub(super) fn head(self, world: &World) -> String {
        let (bot, platform) = (world.backend.url(), world.sim.url());
        let names = self.line("", HEADS, "time", "");
        format!(
            "The bot is {bot}, the simulated platform {platform}, their data in a temporary folder.\n\
             Calls to the platform: chat begins an answer, look asks whether it is there, list reads it, cancel ends it,\n\
             token is for one tenant. 429→ok: asked twice. ×2: two times. dropped: nobody waited for it any more.\n\n{}",
            self.dim(&names)
        )
    }

    pub(super) fn group(self, name: &str) -> String {
        format!("\n{}", self.colour("1", name))
    }

    /// A step, on as many lines as it needs.
    pub(super) fn row(self, number: usize, played: &Played) -> String {
        let Played { step: Step { name, sent, .. }, bot, platform, took, ok, .. } = played;
        let cells = [*name, *sent, bot, platform];
        let columns: Vec<_> = cells.iter().zip(WIDTHS).map(|(cell, width)| wrap(cell, width)).collect();
        let height = columns.iter().map(Vec::len).max().unwrap_or(1);
        let mut lines: Vec<_> = (0..height)
            .map(|n| {
                let cells = [0, 1, 2, 3].map(|column| columns[column].get(n).map_or("", String::as_str));
                match n {
                    0 => {
                        let verdict = if *ok { self.colour("32", "ok") } else { self.colour("31;1", "FAILED") };
                        self.line(&number.to_string(), cells, &time(*took), &verdict)
                    }
                    _ => self.line("", cells, "", ""),
                }
            })
            .collect();
        if !ok {
            lines.push(format!("    expected of the bot: {}", played.step.bot));
            lines.push(format!("    expected at the platform: {}", played.step.platform));
        }
        lines.join("\n")
    }

    pub(super) fn summary(self, report: &Report, serves: bool) -> String {
        let verdict = match report.failed() {
            0 => self.colour("32;1", "All went as it should"),
            n => self.colour("31;1", &format!("{n} FAILED")),
        };
        let (steps, requests, took) = (report.steps.len(), report.requests(), time(report.took()));
        let next = if serves { "" } else { NEXT };
        format!("\n{verdict}: {steps} steps, {requests} requests to the platform, {took}.{next}")
    }

    fn line(self, number: &str, cells: [&str; 4], time: &str, verdict: &str) -> String {
        let [a, b, c, d] = WIDTHS;
        let [name, sent, bot, platform] = cells;
        let time = self.dim(&format!("{time:>6}"));
        let line = format!("{number:>2}  {name:a$}  {sent:b$}  {bot:c$}  {platform:d$}  {time}  {verdict}");
        line.trim_end().to_owned()
    }

    fn dim(self, text: &str) -> String {
        self.colour("2", text)
    }

    fn colour(self, code: &str, text: &str) -> String {
        if self.colours && !text.trim().is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn time(time: Duration) -> String {
    match time.as_millis() {
        0 => "< 1 ms".to_owned(),
        ms @ 1..1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// The lines of a text, broken at spaces; a word that is longer than a line is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for mut word in text.split(' ').map(str::to_owned) {
        loop {
            let line = lines.last_mut().expect("there is always one");
            let (used, needs) = (line.chars().count(), word.chars().count());
            if used == 0 && needs > width {
                *line = word.chars().take(width).collect();
                word = word.chars().skip(width).collect();
            } else if used == 0 || used + 1 + needs <= width {
                if used > 0 {
                    line.push(' ');
                }
                line.push_str(&word);
                break;
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_broken_at_spaces_and_words_that_are_too_long_anywhere() {
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("a bc def", 5), ["a bc", "def"]);
        assert_eq!(wrap("≥≥≥≥≥ ×", 5), ["≥≥≥≥≥", "×"]);
        assert_eq!(wrap("a bcdefghijk l", 5), ["a", "bcdef", "ghijk", "l"]);
    }

    #[test]
    fn colours_are_for_terminals() {
        assert_eq!(Table::new(true).group("a"), "\n\x1b[1ma\x1b[0m");
        assert_eq!(Table::new(false).group("a"), "\na");
    }
}
