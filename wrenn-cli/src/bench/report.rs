//! The report: tables for a terminal, and a page with plots.

use std::fmt::Write as _;

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Report {
    rounds: usize,
    charts: Vec<Chart>,
    ratios: Vec<(String, f64)>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Chart {
    title: String,
    unit: &'static str,
    bars: Vec<Bar>,
}

/// One row: parts that are drawn, and figures that are only told.
#[derive(Debug)]
pub(super) struct Bar {
    label: String,
    parts: Vec<(&'static str, f64)>,
    more: Vec<(&'static str, f64)>,
}

impl Bar {
    pub(super) fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), parts: Vec::new(), more: Vec::new() }
    }

    /// A figure that is drawn: each is drawn over the one after it, so they are to grow.
    pub(super) fn part(mut self, name: &'static str, value: f64) -> Self {
        self.parts.push((name, value));
        self
    }

    pub(super) fn more(mut self, name: &'static str, value: f64) -> Self {
        self.more.push((name, value));
        self
    }

    fn longest(&self) -> f64 {
        self.parts.iter().map(|(_, value)| *value).fold(0.0, f64::max)
    }
}

impl Report {
    pub(super) fn new(rounds: usize) -> Self {
        Self { rounds, charts: Vec::new(), ratios: Vec::new(), notes: Vec::new() }
    }

    pub(super) fn chart(&mut self, title: &str, unit: &'static str, bars: impl IntoIterator<Item = Bar>) {
        self.charts.push(Chart { title: title.to_owned(), unit, bars: bars.into_iter().collect() });
    }

    pub(super) fn ratio(&mut self, what: &str, value: f64) {
        self.ratios.push((what.to_owned(), value));
    }

    pub(super) fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// The report for a terminal.
    pub(super) fn text(&self) -> String {
        let mut text = format!("Medians of {} rounds unless said.\n", self.rounds);
        for chart in &self.charts {
            let _ = write!(text, "\n{}\n", chart.title);
            let width = chart.bars.iter().map(|bar| bar.label.len()).max().unwrap_or(0);
            for bar in &chart.bars {
                let _ = write!(text, "  {:width$}", bar.label);
                for (name, value) in bar.parts.iter().chain(&bar.more) {
                    let _ = write!(text, " | {name} {}", figure(*value));
                }
                text.push('\n');
            }
        }
        text.push_str("\nRatios\n");
        for (what, value) in &self.ratios {
            let _ = writeln!(text, "  {value:6.2}  {what}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }

    /// The report as a page that needs nothing but a browser.
    pub(super) fn html(&self) -> String {
        let mut body = String::new();
        for chart in &self.charts {
            let _ = write!(body, "<h2>{} ({})</h2>\n{}", escape(&chart.title), chart.unit, svg(chart));
        }
        body.push_str("<h2>Ratios</h2>\n<table>\n");
        for (what, value) in &self.ratios {
            let _ = writeln!(body, "<tr><td>{value:.2}</td><td>{}</td></tr>", escape(what));
        }
        body.push_str("</table>\n");
        for note in &self.notes {
            let _ = writeln!(body, "<p>{}</p>", escape(note));
        }
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Restore benchmark</title>\n\
             <style>body{{font:15px sans-serif;max-width:60em;margin:2em auto}}td{{padding:.2em 1em}}</style></head>\n\
             <body><h1>Restore benchmark</h1><p>Medians of {} rounds unless said.</p>\n{body}</body></html>\n",
            self.rounds
        )
    }
}

const COLOURS: [&str; 3] = ["#1d4e89", "#4f8fc0", "#a9cce3"];
const ROW: usize = 26;
const LEFT: usize = 260;
const WIDTH: usize = 420;

/// Bars, longest part below, with their figures.
fn svg(chart: &Chart) -> String {
    let longest = chart.bars.iter().map(Bar::longest).fold(f64::MIN_POSITIVE, f64::max);
    let height = chart.bars.len() * ROW + 10;
    let mut out = format!("<svg width=\"100%\" viewBox=\"0 0 1000 {height}\" font-size=\"13\">\n");
    for (row, bar) in chart.bars.iter().enumerate() {
        let y = row * ROW;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8,
            y + 17,
            escape(&bar.label)
        );
        for (index, (name, value)) in bar.parts.iter().enumerate().rev() {
            let width = value / longest * WIDTH as f64;
            let colour = COLOURS[index.min(COLOURS.len() - 1)];
            let _ = writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"><title>{} {}</title></rect>",
                y + 3,
                ROW - 8,
                escape(name),
                figure(*value)
            );
        }
        let told: Vec<_> =
            bar.parts.iter().map(|(name, value)| format!("{name} {}", figure(*value))).collect();
        let x = LEFT as f64 + bar.longest() / longest * WIDTH as f64 + 8.0;
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{}\" fill=\"#444\" font-size=\"11\">{}</text>",
            y + 17,
            escape(&told.join(", "))
        );
    }
    out.push_str("</svg>\n");
    out
}

fn figure(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_every_figure_and_escapes_text() {
        let mut report = Report::new(3);
        let bar = Bar::new("a <b>").part("loaded", 12.5).part("exec", 100.0).more("faults", 7.0);
        report.chart("Title & more", "ms", [bar]);
        report.ratio("one against two", 0.5);
        report.note("nothing else");
        let text = report.text();
        for told in [
            "Title & more",
            "a <b>",
            "loaded 12.5",
            "exec 100",
            "faults 7",
            "0.50  one against two",
            "nothing else",
        ] {
            assert!(text.contains(told), "{told:?} is not in: {text}");
        }
        let page = report.html();
        assert!(page.contains("a &lt;b&gt;") && page.contains("Title &amp; more") && !page.contains("a <b>"));
        assert!(page.contains("width=\"420.0\"") && page.contains("width=\"52.5\""), "{page}");
    }
}
