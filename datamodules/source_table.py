"""Where raw files come from: what a source is, and those of the imputation data sets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One raw file.

    Attributes:
        name: key of `datamodules.sources.SOURCES`, unique.
        path: path inside a mirror and inside the cache's folder `raw`, with forward slashes.
        urls: addresses, tried in order; of a zip or tar archive, what follows ``#`` is the member that is the file.
        sha256: accepted sums in hexadecimal, the published one first; the others are repackings of the same content.
        license: licence or terms of use.
        citation: whom to cite.
    """

    name: str
    path: str
    urls: tuple[str, ...]
    sha256: tuple[str, ...]
    license: str
    citation: str


def _mnist(name: str, *sha256: str) -> Source:
    return Source(
        name=name,
        path=f"mnist/{name}",
        urls=(
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
            f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}",
        ),
        sha256=sha256,
        license="CC BY-SA 3.0",
        citation="LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998",
    )


def _physionet(name: str, *sha256: str) -> Source:
    return Source(
        name=name,
        path=f"physionet2012/{name}",
        urls=(f"https://physionet.org/files/challenge-2012/1.0.0/{name}?download",),
        sha256=sha256,
        license="ODC-By 1.0",
        citation="Silva, Moody, Scott, Celi and Mark, Predicting in-hospital mortality of ICU patients: "
        "the PhysioNet/Computing in Cardiology Challenge 2012",
    )


def _sprites(name: str, *sha256: str) -> Source:
    # The commit is pinned: frames of another state of the sheets would be another data set.
    commit = "3ce4048c5227802bd8f1888e293fd3afdba91c0c"
    return Source(
        name=name,
        path=f"sprites/{name}",
        urls=(
            f"https://raw.githubusercontent.com/YingzhenLi/Sprites/{commit}/{name}",
            f"https://github.com/YingzhenLi/Sprites/raw/{commit}/{name}",
        ),
        sha256=sha256,
        license="CC BY-SA 3.0 / GPL 3.0",
        citation="Li and Mandt, Disentangled sequential autoencoder, 2018; sheets of the Liberated Pixel Cup and the "
        "Universal LPC Spritesheet",
    )


SERIES_SOURCES: tuple[Source, ...] = (
    _mnist(
        "train-images-idx3-ubyte.gz",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    ),
    _mnist(
        "train-labels-idx1-ubyte.gz",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    _mnist(
        "t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    ),
    _mnist(
        "t10k-labels-idx1-ubyte.gz",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    _physionet(
        "set-a.tar.gz",
        "8cb250f179cd0952b4b9ebcf8954b63d70383131670fac1cfee13deaa13ca920",
        "28aff9276b5a864608836f4f2dd3791d3feedcc57178620ecb66bb7e8e439d3d",
    ),
    _physionet(
        "set-b.tar.gz",
        "b1637a2a423a8e76f8f087896cfc5fdf28f88519e1f4e874fbda69b2a64dac30",
        "639ab95b809aa849cc083b1675a5f1b345547d7c670c88f3a15b61e3c489105e",
    ),
    _physionet(
        "set-c.tar.gz",
        "a4a56b95bcee4d50a3874fe298bf2998f2ed0dd98a676579573dc10419329ee1",
        "a94afd695f573b365f0188cc5adb88f972e7742426c5e2fcf84c765dbb0ec0a3",
    ),
    _physionet("Outcomes-a.txt", "2613ea60ccda29f87571a7d6b09ad130858a8ccd66325bd073365925026883c2"),
    _physionet("Outcomes-b.txt", "1305f29734da374a809483229a99f33a9230aa8d4fa74b1a2d6ad788136423d5"),
    _physionet("Outcomes-c.txt", "0b32dcb7753c0f18f2f5fde498a28618b8879c5e527ce0dae8ad120dd7e205c9"),
    _sprites("body/0.png", "27d1ac78db37c42f35a20d15c42705efc5e58d47c236cc01423879d4f797f151"),
    _sprites("body/1.png", "1535e9228357b884df80f777a0d1dac10ac35e550e4d8d077105ccad014a1460"),
    _sprites("body/2.png", "7c241033b4897501cb3721b6c3a9ebfa94b13db10a539edbd9bcc3e0c2a4bcb9"),
    _sprites("body/3.png", "055f5aa33fc112d8444b42fce2cf50608a9fbbf2466c54ceaa46c777589a717a"),
    _sprites("body/4.png", "57f3b9c510482379aba9a32fc0de7d48e9cbe3dc40f2447283547f773b77ca72"),
    _sprites("body/5.png", "91e49453aeab5ebbb4fd2b48253812895dcfb4cb1829b84e24425c66de8f04ff"),
    _sprites("bottomwear/0.png", "4ec356c488e272fde2d2d0d722b12a80217871e41161d43ba784caf243969ec2"),
    _sprites("bottomwear/1.png", "0674312eaa4ab548f8bb31ef95d7dbd46b41555758cec51bd6c3e9fac9a0f936"),
    _sprites("bottomwear/2.png", "3b464feb0d20ff34b0ca2a6d1fd00766ad86e2229c3d56ff91379fe27588a893"),
    _sprites("bottomwear/3.png", "b366e84ea0519d06cf693f51e0ee2f9ac32b3132d27c75dfdc4b6f52fca072de"),
    _sprites("bottomwear/4.png", "4ed7e7702e4f50b9692c0043be04b7296a108d85ea97230fb50d13c150d98771"),
    _sprites("bottomwear/5.png", "a5c5e7e33f13fe5ad37b5836a5a74fb0d2094a0877c2146961b88688ff85840d"),
    _sprites("topwear/0.png", "b917edcf2b3c35d51ef57a6fad67557c5edf048785bea29db09a640d09ac9a90"),
    _sprites("topwear/1.png", "e33c6cb31ed1268a2c0dc73b665b1c9b9420e22baf3321880222bdb22682368b"),
    _sprites("topwear/2.png", "2b9b8fefa08894b7ea536cd62b86d494aefe6e54495c5c1d83460827b13b6448"),
    _sprites("topwear/3.png", "807f5b628592f6747e2814be9435963069dba6c360577168c02f57bbe903433d"),
    _sprites("topwear/4.png", "b51b17878503877e179ce4f9231713bf2b2d2d666c3ec9ee29f4e784469867a2"),
    _sprites("topwear/5.png", "1b6049d43f83ebfda857cc405d1936ac9fd80be480fa6ad239024a6a75ad0372"),
    _sprites("hair/0.png", "e4007b0635a239ad16cdebfe90759349ccc73dfc6836c9d19625714be185f43d"),
    _sprites("hair/1.png", "fa6369f84d3310705df6d8ca8c9d515a7d211e73d2826c50a9cb5bb285652c66"),
    _sprites("hair/2.png", "1b8046752be7233e829ebe9b11048e171d8d181ee6f68e07042b34f57bb8af0d"),
    _sprites("hair/3.png", "333783285c5fd94ff434ae5000d2da39aac7940269f173119eaa70d34c8acfa1"),
    _sprites("hair/4.png", "24df8e9b291cbd444f6c4d12d35b3d43d909cd13f04e6401e0fd8ab10216d5a2"),
    _sprites("hair/5.png", "4dd471cc20e0b1cf71adcaab01c88598767e5cfe680adacdf560ca91574f17ae"),
    _sprites("shoes/1.png", "d56a561616a20a12030d2d40a52eeec63e6d048871bf3b6994221869362151f1"),
)
