//! A plot of the last half hour as SVG, by a pure function.
//!
//! What is not known is a grey band and breaks the line; before the process started there is
//! nothing. It says in words what it shows, for whoever does not see it.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::history::{EVERY, SAMPLES};

/// Height of the drawing in its own units, and room above the highest value and below zero, so that
/// neither is cut.
const HEIGHT: f64 = 100.0;
const ROOM: f64 = 4.0;

/// A plot of `values`, oldest first, the last one now. `least`: what the scale spans at least, so that
/// noise does not look like trouble. `say` writes a value with its unit.
pub(super) fn plot(id: &str, title: &str, least: f64, values: &[Option<f64>], say: impl Fn(f64) -> String) -> Markup {
    let values = &values[values.len().saturating_sub(SAMPLES)..];
    let highest = values.iter().flatten().copied().fold(0.0, f64::max);
    let unknown = values.iter().filter(|value| value.is_none()).count();
    let now = match values.last() {
        Some(Some(value)) => say(*value),
        Some(None) => "unknown".to_owned(),
        None => "not measured yet".to_owned(),
    };
    let words = if unknown == values.len() {
        "nothing known yet".to_owned()
    } else if unknown > 0 {
        format!("highest {}, unknown for {}", say(highest), minutes(unknown))
    } else {
        format!("highest {}", say(highest))
    };
    let drawn = Drawn::of(values, highest.max(least));
    html! {
        figure {
            figcaption { b { (title) } span { (words) } }
            svg role="img" aria-labelledby={ (id) "-t " (id) "-d" } viewBox={ "0 0 " (SAMPLES) " " (HEIGHT) }
                preserveAspectRatio="none" {
                title id={ (id) "-t" } { (title) ", the last half hour" }
                desc id={ (id) "-d" } { "Now " (now) "; " (words) "." }
                @for (from, width) in drawn.gaps {
                    rect.gap x=(from) y="0" width=(width) height=(HEIGHT) {}
                }
                path.area d=(drawn.area) {}
                path.line d=(drawn.line) {}
            }
            div.ends aria-hidden="true" { span { "30 min ago" } span { "now" } }
        }
    }
}

/// So many samples in words.
fn minutes(samples: usize) -> String {
    let seconds = EVERY.as_secs() * samples as u64;
    if seconds < 60 {
        format!("{seconds} s")
    } else {
        format!("{} min", (seconds + 30) / 60)
    }
}

/// Paths in the drawing's own units: a sample is one wide.
#[derive(Debug, Default, PartialEq)]
struct Drawn {
    line: String,
    area: String,
    /// From where, how wide.
    gaps: Vec<(usize, usize)>,
}

impl Drawn {
    fn of(values: &[Option<f64>], top: f64) -> Self {
        let offset = SAMPLES - values.len();
        let mut drawn = Self::default();
        let mut at = 0;
        for run in values.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let from = offset + at;
            at += run.len();
            if run[0].is_none() {
                drawn.gaps.push((from, run.len()));
                continue;
            }
            let floor = HEIGHT - ROOM;
            let points = run.iter().flatten().enumerate().map(|(n, value)| {
                let x = (from + n) as f64 + 0.5;
                (x, floor - value / top * (HEIGHT - 2.0 * ROOM))
            });
            let points: Vec<_> = points.collect();
            for (n, (x, y)) in points.iter().enumerate() {
                let _ = write!(drawn.line, "{}{x} {y:.1}", if n == 0 { "M" } else { "L" });
            }
            if let [(x, _)] = points[..] {
                // One alone is a dot: round ends make one of a line without length.
                let _ = write!(drawn.line, "H{x}");
            }
            if let [(first, _), .., (last, _)] = points[..] {
                let _ = write!(drawn.area, "M{first} {floor}");
                for (x, y) in &points {
                    let _ = write!(drawn.area, "L{x} {y:.1}");
                }
                let _ = write!(drawn.area, "L{last} {floor}Z");
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(value: f64) -> String {
        format!("{value} s")
    }

    #[test]
    fn what_is_unknown_breaks_the_line_and_is_never_drawn_as_zero() {
        let values = [None, Some(0.0), Some(5.0), None, None, Some(10.0)];
        let drawn = Drawn::of(&values, 10.0);
        assert_eq!(drawn.gaps, [(174, 1), (177, 2)]);
        assert_eq!(drawn.line, "M175.5 96.0L176.5 50.0M179.5 4.0H179.5");
        assert_eq!(drawn.area, "M175.5 96L175.5 96.0L176.5 50.0L176.5 96Z");
        let shown = plot("p", "Oldest waiting", 1.0, &values, seconds).into_string();
        assert!(shown.contains("highest 10 s, unknown for 30 s"), "{shown}");
        assert!(shown.contains("<desc id=\"p-d\">Now 10 s; highest 10 s"), "{shown}");
        assert_eq!(shown.matches("<rect").count(), 2);
    }

    #[test]
    fn nothing_yet_and_nothing_known_say_so() {
        let shown = plot("p", "t", 1.0, &[], seconds).into_string();
        assert!(shown.contains("Now not measured yet; nothing known yet."), "{shown}");
        let shown = plot("p", "t", 1.0, &[None; 200], seconds).into_string();
        assert!(shown.contains("Now unknown; nothing known yet."), "{shown}");
        assert_eq!(Drawn::of(&[None; SAMPLES], 1.0).gaps, [(0, SAMPLES)]);
        assert_eq!(Drawn::of(&[], 1.0), Drawn::default());
    }

    #[test]
    fn noise_does_not_fill_the_plot() {
        let small = Drawn::of(&[Some(0.01)], 0.01_f64.max(1.0));
        assert_eq!(small.line, "M179.5 95.1H179.5");
    }
}
