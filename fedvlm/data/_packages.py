"""The pinned packages that the embedded data set is made of, with hashes and licences."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One pinned npm package.

    Attributes:
        name: npm name.
        version: Exact version.
        sha256: Hash of its tarball, in hex.
        licence: SPDX expression as the package states it.
        author: Whom to attribute.
        source: Where the artwork comes from.
        domain: Name of the designer's domain; empty for the captions.
    """

    name: str
    version: str
    sha256: str
    licence: str
    author: str
    source: str
    domain: str = ""

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives to the tarball."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


CAPTIONS = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT (labels: Unicode-3.0, from CLDR)",
    "Miles Johnson; Unicode, Inc.",
    "github.com/milesj/emojibase",
)

STYLES = (
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Google Inc",
        "github.com/googlefonts/noto-emoji",
        "noto",
    ),
    Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "Google Inc",
        "github.com/googlefonts/noto-emoji",
        "noto-v1",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twitter",
        "github.com/jdecked/twemoji",
        "twemoji",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "Emoji One",
        "github.com/EmojiTwo/emojitwo",
        "emojione",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Microsoft Corporation",
        "github.com/microsoft/fluentui-emoji",
        "fluent-flat",
    ),
    Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
        "OpenMoji",
        "github.com/hfg-gmuend/openmoji",
        "openmoji",
    ),
)

PACKAGES = (CAPTIONS, *STYLES)
