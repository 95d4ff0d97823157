//! Tiles as PNG, bytes as base64: what a page needs to carry its pictures within.

use anyhow::{Context, Result};
use nadir::Tile;

/// An RGB picture of `tile` `[bands, height, width]`, whose first three bands are red, green and blue in u8.
///
/// # Errors
/// If the tile is of another kind.
pub fn png(tile: Tile<'_>, height: usize, width: usize) -> Result<Vec<u8>> {
    let Tile::U8(values) = tile else { anyhow::bail!("only tiles in u8 can be shown") };
    let pixels = height * width;
    let bands = values.get(..3 * pixels).context("only tiles of three bands can be shown")?;
    let rgb: Vec<u8> = (0..pixels).flat_map(|i| [bands[i], bands[pixels + i], bands[2 * pixels + i]]).collect();
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, u32::try_from(width)?, u32::try_from(height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    encoder.write_header()?.write_image_data(&rgb)?;
    Ok(bytes)
}

/// `data:image/png;base64,...` (RFC 2397, RFC 4648 section 4).
pub fn data_url(png: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut url = String::from("data:image/png;base64,");
    for chunk in png.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = (bits >> (18 - 6 * place)) as usize & 63;
            url.push(if place <= chunk.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(data_url(bytes.as_bytes()), format!("data:image/png;base64,{text}"));
        }
    }

    #[test]
    fn a_picture_holds_the_pixels() {
        let tile: Vec<u8> = (0..12).collect();
        let bytes = png(Tile::U8(&tile), 2, 2).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert!(png(Tile::U8(&tile[..11]), 2, 2).is_err());
        assert!(png(Tile::U16(&[0; 12]), 2, 2).is_err());
    }
}
