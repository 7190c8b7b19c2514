//! Filters of the log, in the syntax of `RUST_LOG`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Checks a filter. A word alone that is neither a level nor one of Peanut's own targets is refused, which
/// `RUST_LOG` would take for a target: `inof` would log nothing but what is called so.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map_err(|error| format!("`{filter}`: {error}"))?;
    for word in filter.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let is_alone = !word.contains(['=', '[', ':']);
        if is_alone && word.parse::<LevelFilter>().is_err() && !word.starts_with("peanut") {
            return Err(format!(
                "`{word}` is no level: off, error, warn, info, debug or trace; for a target write {word}=trace"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_told_from_words_that_mean_nothing() {
        for good in [
            "info",
            "WARN",
            "off",
            "",
            "info,h2=off",
            "peanut_server",
            "hyper=debug",
            "info,peanut_server::loader",
            "[load]=trace",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["inof", "info,verbose", "a=b=c", "peanut_server=loud", "[", "infos", "debug warn"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
