//! What packages have beside the binary, made from its flags: the manual page, and scripts that complete it
//! in shells.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Flags;

/// What is to be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Generate {
    Man,
    Bash,
    Zsh,
    Fish,
}

impl Generate {
    /// Its text.
    pub(super) fn text(self) -> String {
        let mut command = Flags::command();
        let name = command.get_name().to_owned();
        let mut text = Vec::new();
        let shell = match self {
            Generate::Man => {
                clap_mangen::Man::new(command).section("8").render(&mut text).expect("memory takes it");
                return utf8(text);
            }
            Generate::Bash => Shell::Bash,
            Generate::Zsh => Shell::Zsh,
            Generate::Fish => Shell::Fish,
        };
        clap_complete::generate(shell, &mut command, name, &mut text);
        utf8(text)
    }
}

fn utf8(text: Vec<u8>) -> String {
    String::from_utf8(text).expect("flags are described in UTF-8")
}
