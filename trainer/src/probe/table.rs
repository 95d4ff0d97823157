//! The table of a comparison, in markdown.

use super::compare::{Kind, Row, Score};
use super::metrics::mean_and_deviation;

/// `12.5`, `100`: a share in per cent, to two decimals.
pub fn per_cent(share: f64) -> String {
    format!("{}", (share * 1e4).round() / 100.0)
}

/// One line a row, one column a probe and share: mean and sample standard deviation over seeds, in per cent. `measured` says
/// what the figures are; with several classes a tile F1 and average precision stand beside each other.
pub fn markdown(rows: &[Row], kinds: &[Kind], shares: &[f64], k: usize) -> String {
    let name = |kind: &Kind| match kind {
        Kind::Knn => format!("{k}-NN"),
        Kind::Logistic => "logistic".to_owned(),
        Kind::Mmearth => "MMEarth linear".to_owned(),
    };
    let columns: Vec<(Kind, String)> =
        kinds.iter().flat_map(|kind| shares.iter().map(|share| (*kind, per_cent(*share)))).collect();
    let heads = columns.iter().map(|(kind, share)| format!("{} {share} %", name(kind)));
    let mut lines = vec![std::iter::once("model".to_owned()).chain(heads).collect::<Vec<_>>()];
    for row in rows {
        let cell = |(kind, share): &(Kind, String)| {
            let scores = row.scores.get(kind).and_then(|by_share| by_share.get(share));
            scores.map_or_else(|| "-".to_owned(), |scores| cell(scores))
        };
        lines.push(std::iter::once(row.name.clone()).chain(columns.iter().map(cell)).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(&format!("| {} |\n", cells.collect::<Vec<_>>().join(" | ")));
        if at == 0 {
            let rules = widths.iter().enumerate().map(|(column, width)| match column {
                0 => "-".repeat(*width),
                _ => format!("{}:", "-".repeat(width.saturating_sub(1))),
            });
            text.push_str(&format!("| {} |\n", rules.collect::<Vec<_>>().join(" | ")));
        }
    }
    text
}

fn cell(scores: &[Score]) -> String {
    let shown = |values: Vec<f64>| {
        let (mean, deviation) = mean_and_deviation(&values);
        let deviation = deviation.map_or(String::new(), |d| format!(" ± {:.1}", 100.0 * d));
        format!("{:.1}{deviation}", 100.0 * mean)
    };
    let first = shown(scores.iter().map(|s| s.score).collect());
    let precision: Option<Vec<f64>> = scores.iter().map(|s| s.average_precision).collect();
    precision.map_or(first.clone(), |values| format!("{first} / {}", shown(values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown() {
        let score = |score, seed| Score { score, seed, rows: 3, ..Score::default() };
        let knn = [("1".to_owned(), vec![score(0.5, 1), score(0.6, 2)]), ("100".to_owned(), vec![score(0.8, 1)])];
        let rows = [Row {
            name: "zepto".into(),
            about: String::new(),
            dimension: 4,
            scores: [(Kind::Knn, knn.into())].into(),
        }];
        let text = markdown(&rows, &[Kind::Knn, Kind::Mmearth], &[0.01, 1.0], 20);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "| model |  20-NN 1 % | 20-NN 100 % | MMEarth linear 1 % | MMEarth linear 100 % |");
        assert_eq!(lines[1], "| ----- | ---------: | ----------: | -----------------: | -------------------: |");
        assert_eq!(lines[2], "| zepto | 55.0 ± 7.1 |        80.0 |                  - |                    - |");
    }
}
