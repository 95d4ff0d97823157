//! The report of the demo: one HTML page that carries everything within.

use std::fmt::Write;

use anyhow::Result;
use nadir_formats::Tiles;

use super::picture::{data_url, png};
use super::summary::{Emulated, Fate, Summary};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The rungs from the top down: class in the style, name, what is sent.
const RUNGS: [(&str, &str, &str); 6] = [
    ("tile", "full tile", "every pixel as the sensor stored it"),
    ("embedding", "int8 embedding", "enough to search, cluster and classify on ground"),
    ("code", "binary code", "the signs of the embedding: a coarse search"),
    ("record", "record", "scores, quality and the reason"),
    ("veto", "vetoed", "a record that says why: too little data, or saturated"),
    ("nothing", "nothing", "not a byte"),
];

/// The page; `tiles` and `classes` are those of the stream, `loss` is a PNG.
///
/// # Errors
/// If a tile cannot be shown.
pub fn page(summary: &Summary, tiles: &Tiles, classes: &[i64], names: &[String], loss: &[u8]) -> Result<String> {
    let s = summary;
    let mut html = String::with_capacity(4 << 20);
    let class = escape(&s.class);
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Nadir: {class} tiles under a byte budget</title><style>{STYLE}</style></head><body><main>\
         <h1>{} of {} {class} tiles came down, in {:.0} % of the bytes</h1>\
         <p class=\"soft\">{} real Sentinel-2 tiles that no model here had seen passed a {} KiB encoder. It learned what {class} looks like \
         from 20 labelled examples, and chose, tile by tile, what was worth sending.</p>",
        s.ours.wanted,
        s.ours.all_wanted,
        100.0 * s.share_down(),
        s.fates.len(),
        s.model_bytes / 1024,
    )?;
    headline(&mut html, s)?;
    way(&mut html, s)?;
    html.push_str("<h2>What it is compared with</h2><div class=\"two\">");
    comparison(&mut html, s)?;
    budget(&mut html, s)?;
    html.push_str("</div>");
    stream(&mut html, s, tiles, classes, names)?;
    rungs(&mut html, s, tiles.tile_len())?;
    html.push_str("<h2>What the model knows</h2><div class=\"two\">");
    accuracy(&mut html, s)?;
    write!(
        html,
        "<div class=\"card\"><h2>Loss of the distillation just run</h2><img class=\"loss\" alt=\"Loss against steps\" src=\"{}\"></div></div>",
        data_url(loss)
    )?;
    footer(&mut html, s)?;
    writeln!(html, "</main><script>{SCRIPT}</script></body></html>")?;
    Ok(html)
}

fn card(html: &mut String, label: &str, value: &str, unit: &str, detail: &str) -> std::fmt::Result {
    write!(
        html,
        "<div class=\"card\"><span class=\"label\">{label}</span><b class=\"num\">{value} <small>{unit}</small></b>\
         <span class=\"soft\">{detail}</span></div>"
    )
}

fn headline(html: &mut String, s: &Summary) -> std::fmt::Result {
    html.push_str("<section class=\"headline\">");
    let times = s.ours.wanted as f64 / s.random.max(f64::MIN_POSITIVE);
    card(
        html,
        "Wanted tiles kept",
        &s.ours.wanted.to_string(),
        &format!("of {}", s.ours.all_wanted),
        &format!("{times:.1} times a random choice; first in, first out keeps {}", s.fifo.wanted),
    )?;
    card(
        html,
        "Bytes down",
        &kib(s.outbox_bytes as f64),
        &format!("KiB of {}", kib(s.stream_bytes as f64)),
        &format!("{:.1} % of the stream, frames and checksums included", 100.0 * s.share_down()),
    )?;
    card(
        html,
        "Accuracy, int8",
        &format!("{:.1}", 100.0 * s.int8.logistic),
        "%",
        &format!("ten classes, logistic regression; float {:.1} %", 100.0 * s.float.logistic),
    )?;
    card(
        html,
        "Cosine, int8 to float",
        &format!("{:.4}", s.cosine),
        "",
        &format!("mean over the stream, least {:.4}", s.cosine_min),
    )?;
    match &s.emulated {
        Emulated::Ran { equal, embedded, instructions, ram, .. } => card(
            html,
            "Equal on a Cortex-M7",
            &equal.to_string(),
            &format!("of {embedded}"),
            &format!("in QEMU; {:.0} M instructions a tile, {} KiB static RAM", instructions / 1e6, ram / 1024),
        )?,
        Emulated::Skipped(why) => card(html, "Equal on a Cortex-M7", "skipped", "", &escape(why))?,
    }
    html.push_str("</section>");
    Ok(())
}

fn way(html: &mut String, s: &Summary) -> std::fmt::Result {
    html.push_str("<h2>The way</h2><ol class=\"way\">");
    let kept = s.fates.iter().filter(|fate| fate.rung == "tile").count();
    let steps = [
        (
            "Distil",
            "trainer distill",
            format!("a teacher's embeddings, learned by a student on {} tiles", s.train_tiles),
        ),
        ("Quantize", "quantize convert", format!("integers throughout, one file of {} KiB", s.model_bytes / 1024)),
        ("Embed", "quantize embed", "64 &times; 64 pixels become one vector".into()),
        ("Triage", "triage run", format!("{} scores, one choice under the budget", s.fates.len())),
        ("Downlink", "triage show", format!("{kept} tiles in full, something about every one")),
    ];
    for (name, command, what) in steps {
        write!(html, "<li><b>{name}</b>{what}<br><code>{command}</code></li>")?;
    }
    html.push_str("</ol>");
    Ok(())
}

fn comparison(html: &mut String, s: &Summary) -> std::fmt::Result {
    let all = s.ours.all_wanted;
    write!(html, "<div class=\"card\"><h2>{} tiles kept in full, of {all}</h2><div class=\"bars\">", escape(&s.class))?;
    let bars = [
        ("Triage", "ours", s.ours.wanted as f64, s.ours.wanted.to_string()),
        ("First in, first out", "", s.fifo.wanted as f64, s.fifo.wanted.to_string()),
        ("Random, mean", "", s.random, format!("{:.1}", s.random)),
    ];
    for (name, class, kept, text) in bars {
        let share = 100.0 * kept / all.max(1) as f64;
        write!(
            html,
            "<span>{name}</span><div class=\"track\"><div class=\"fill {class}\" style=\"width:{share:.1}%\"></div></div>\
             <b class=\"num\">{text}</b>"
        )?;
    }
    write!(
        html,
        "</div><p class=\"soft\" style=\"margin-top:.9rem\">The other two send full tiles until the budget is full ({} tiles) and pay no bytes \
         for frames or records. Random is the mean of 1000 seeded draws.</p></div>",
        s.fifo.tiles
    )
}

fn fate_class(fate: &Fate) -> &'static str {
    if fate.reason.starts_with("vetoed") {
        return "veto";
    }
    RUNGS.iter().map(|rung| rung.0).find(|rung| *rung == fate.rung).unwrap_or("nothing")
}

fn bytes_of(s: &Summary, class: &str) -> u64 {
    s.fates.iter().filter(|fate| fate_class(fate) == class).map(|fate| fate.bytes).sum()
}

fn budget(html: &mut String, s: &Summary) -> std::fmt::Result {
    html.push_str("<div class=\"card\"><h2>Where the budget goes</h2><div class=\"budget\">");
    for (class, name, _) in RUNGS {
        let bytes = bytes_of(s, class);
        let share = 100.0 * bytes as f64 / s.budget.max(1) as f64;
        if bytes > 0 {
            write!(
                html,
                "<span class=\"fate-{class}\" style=\"width:{share:.2}%;background:var(--fate)\" title=\"{name}: {bytes} bytes\"></span>"
            )?;
        }
    }
    write!(
        html,
        "</div><div class=\"scale\"><span>0</span><span>{} KiB used of {}</span></div><p class=\"soft\" style=\"margin-top:.6rem\">",
        kib(s.outbox_bytes as f64),
        kib(s.budget as f64)
    )?;
    for (class, name, _) in RUNGS {
        let bytes = bytes_of(s, class);
        if bytes > 0 {
            write!(
                html,
                "<span class=\"item\"><span class=\"dot fate-{class}\"></span>{name} {} KiB</span> ",
                kib(bytes as f64)
            )?;
        }
    }
    html.push_str("</p></div>");
    Ok(())
}

fn rungs(html: &mut String, s: &Summary, tile_len: usize) -> std::fmt::Result {
    html.push_str(
        "<h2>What a tile can become</h2><div class=\"card scroll\"><table><tr><th>Rung</th><th class=\"words\">What goes down</th>\
         <th>Bytes a tile</th><th>Tiles</th><th>Bytes</th></tr>",
    );
    for (class, name, what) in RUNGS {
        let fates: Vec<&Fate> = s.fates.iter().filter(|fate| fate_class(fate) == class).collect();
        let bytes = bytes_of(s, class);
        let each = match fates.len() {
            0 if class == "tile" => format!("&gt; {tile_len}"),
            0 => "&ndash;".into(),
            count => format!("{:.0}", bytes as f64 / count as f64),
        };
        write!(
            html,
            "<tr><td><span class=\"dot fate-{class}\"></span>{name}</td><td class=\"words soft\">{what}</td>\
             <td>{each}</td><td>{}</td><td>{bytes}</td></tr>",
            fates.len()
        )?;
    }
    html.push_str("</table></div>");
    Ok(())
}

fn stream(html: &mut String, s: &Summary, tiles: &Tiles, classes: &[i64], names: &[String]) -> Result<()> {
    let class = escape(&s.class);
    write!(
        html,
        "<h2>The stream, tile by tile</h2><p class=\"soft\">In the order of capture. The border is the fate of a tile; \
         <span class=\"wanted-dot\"></span>marks those that truly are {class} (the model never saw these labels). \
         Hover or tap for score and reason.</p><div class=\"controls\">\
         <button data-show=\"all\" aria-pressed=\"true\">all {}</button>\
         <button data-show=\"wanted\" aria-pressed=\"false\"><span class=\"wanted-dot\"></span>{class} {}</button>",
        s.fates.len(),
        s.ours.all_wanted
    )?;
    for (rung, name, _) in RUNGS {
        let count = s.fates.iter().filter(|fate| fate_class(fate) == rung).count();
        if count > 0 {
            write!(
                html,
                "<button data-show=\"fate-{rung}\" aria-pressed=\"false\"><span class=\"dot fate-{rung}\"></span>{name} {count}</button>"
            )?;
        }
    }
    html.push_str("</div><div class=\"stream\">");
    for (index, fate) in s.fates.iter().enumerate() {
        let truth = &names[classes[index] as usize];
        let marked = if *truth == s.class { " wanted" } else { "" };
        let picture = data_url(&png(tiles.tile(index), tiles.shape[2], tiles.shape[3])?);
        let score = fate.score.map_or_else(|| "no score".into(), |score| format!("score {score:+.3}"));
        let (truth, reason, rung) = (escape(truth), escape(&fate.reason), escape(&fate.rung));
        write!(
            html,
            "<figure class=\"fate-{}{marked}\" tabindex=\"0\"><img loading=\"lazy\" width=\"64\" height=\"64\" alt=\"tile {index}, {truth}\" \
             src=\"{picture}\"><figcaption><b>{truth}</b>, tile {index}<br>{rung}, {} bytes<br>{score}, {reason}</figcaption></figure>",
            fate_class(fate),
            fate.bytes
        )?;
    }
    html.push_str("</div>");
    Ok(())
}

fn accuracy(html: &mut String, s: &Summary) -> std::fmt::Result {
    let percent = |v: f64| format!("{:.1} %", 100.0 * v);
    write!(
        html,
        "<div class=\"card\"><h2>Ten classes read from the embeddings</h2><div class=\"scroll\"><table>\
         <tr><th></th><th>float, trainer</th><th>int8, runtime</th><th>difference</th></tr>\
         <tr><td>k-NN</td><td>{}</td><td>{}</td><td>{:+.1}</td></tr>\
         <tr><td>logistic regression</td><td>{}</td><td>{}</td><td>{:+.1}</td></tr></table></div>\
         <p class=\"soft\" style=\"margin-top:.8rem\">Learned on {} labelled tiles, tested on {} from other 1-degree cells: \
         so few that the standard error of a figure is about 3 points. Chance is 10 %.</p></div>",
        percent(s.float.neighbours),
        percent(s.int8.neighbours),
        100.0 * (s.int8.neighbours - s.float.neighbours),
        percent(s.float.logistic),
        percent(s.int8.logistic),
        100.0 * (s.int8.logistic - s.float.logistic),
        s.train_tiles,
        s.fates.len(),
    )
}

fn footer(html: &mut String, s: &Summary) -> std::fmt::Result {
    write!(
        html,
        "<footer><p>Made by <code>cargo demo</code>, which runs the same commands that a user types. The stream holds 20 tiles of each class, one of each \
         in every ten, so that first in, first out meets neither luck nor malice. Microcontroller: {}.</p>\
         <p>Tiles: EuroSAT (Helber et al., 2019), MIT licence; contain modified Copernicus Sentinel data. Shown brightened.</p></footer>",
        escape(&s.emulated.to_string())
    )
}

fn kib(bytes: f64) -> String {
    let kib = bytes / 1024.0;
    if kib < 100.0 { format!("{kib:.1}") } else { format!("{kib:.0}") }
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use nadir_formats::Pixels;

    use super::super::baseline::Kept;
    use super::super::summary::Accuracy;
    use super::*;

    #[test]
    fn a_page_shows_every_tile_and_asks_for_nothing_outside() {
        let fate = |rung: &str, reason: &str| Fate {
            rung: rung.into(),
            bytes: 100,
            score: (rung != "nothing").then_some(0.25),
            reason: reason.into(),
        };
        let accuracy = Accuracy { neighbours: 0.5, logistic: 0.75 };
        let kept = Kept { tiles: 1, wanted: 1, all_wanted: 1 };
        let summary = Summary {
            class: "<River>".into(),
            train_tiles: 2,
            stream_bytes: 36,
            budget: 300,
            outbox_bytes: 200,
            model_bytes: 2048,
            float: accuracy,
            int8: accuracy,
            cosine: 0.99,
            cosine_min: 0.98,
            ours: kept,
            fifo: kept,
            random: 0.4,
            emulated: Emulated::Skipped("QEMU is not installed".into()),
            fates: vec![fate("tile", "wanted"), fate("record", "vetoed-no-data"), fate("nothing", "budget")],
        };
        let tiles = Tiles { shape: [3, 3, 2, 2], pixels: Pixels::U8((0..36).collect()) };
        let names = ["Sea".to_owned(), "<River>".to_owned()];
        let html = page(&summary, &tiles, &[1, 0, 0], &names, b"png").unwrap();
        assert_eq!(html.matches("<figure ").count(), 3);
        assert_eq!(html.matches("fate-tile wanted\"").count(), 1);
        assert_eq!(html.matches("<figure class=\"fate-veto\"").count(), 1);
        assert!(!html.contains("<River>") && html.contains("&lt;River&gt;"));
        assert!(html.contains("QEMU is not installed"));
        assert!(!html.contains("http"), "the page must not need the network");
        for tag in ["div", "table", "section", "figure", "main", "ol", "p", "footer"] {
            assert_eq!(
                html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count(),
                html.matches(&format!("</{tag}>")).count(),
                "{tag}"
            );
        }
    }
}
