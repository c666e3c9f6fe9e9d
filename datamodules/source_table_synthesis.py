"""Raw files of the tables that TabDDPM was published with, and the rows of its splits."""

from datamodules.source_table import Source

UCI = "https://archive.ics.uci.edu"
KAGGLE = "https://www.kaggle.com/api/v1/datasets/download"  # gives an archive of the whole data set
# The commits are pinned: another state would hold other files.
REALTABFORMER = (
    "https://raw.githubusercontent.com/avsolatorio/REaLTabFormer-Experiments/"
    "dc5e13ba2d88031744f65d1d8bd983932f0ce72a/data/repo"
)
PUBLISHED_ARRAYS = "https://raw.githubusercontent.com/ruheyun/tab-ddpm-dp/ec7254ad810d34b7fe403fca1aa076acf3de274b/data"
GITHUB = "https://raw.githubusercontent.com"
TABDDPM = "Kotelnikov, Baranchuk, Rubachev and Babenko, TabDDPM: modelling tabular data with diffusion models, 2023"
SOLATORIO = "Solatorio and Dupriez, REaLTabFormer: generating realistic relational and tabular data, 2023"


def _table(dataset: str, name: str, urls: tuple[str, ...], license: str, citation: str, *sha256: str) -> Source:
    return Source(name, f"tabular/{dataset}/{name.rpartition('/')[2]}", urls, sha256, license, citation)


def _uci(dataset: str, number: int, name: str, citation: str, *sha256: str) -> Source:
    urls = (
        f"{UCI}/ml/machine-learning-databases/{dataset}/{name}",
        f"{UCI}/static/public/{number}/{dataset}.zip#{name}",
    )
    return _table(dataset, name, urls, "CC BY 4.0", citation, *sha256)


def _kaggle(dataset: str, page: str, name: str, license: str, citation: str, *sha256: str) -> Source:
    urls = (f"{REALTABFORMER}/{dataset}/{name}", f"{KAGGLE}/{page}#{name}")
    return _table(dataset, name, urls, license, citation, *sha256)


def _array(dataset: str, name: str, license: str, citation: str, sha256: str) -> Source:
    name = f"{dataset}/{name}.npy"
    return _table(dataset, name, (f"{PUBLISHED_ARRAYS}/{name}",), license, f"{citation}; {TABDDPM}", sha256)


def _rows(dataset: str, sha256: str) -> Source:
    name = f"{dataset}_idx.json"
    return _table(dataset, name, (f"{REALTABFORMER}/{dataset}/{name}",), "not stated", SOLATORIO, sha256)


def _gesture(name: str, sha256: str) -> Source:
    urls = (
        f"{UCI}/static/public/302/gesture+phase+segmentation.zip#{name}",
        f"{UCI}/ml/machine-learning-databases/00302/gesture_phase_dataset.zip#{name}",
    )
    citation = "Madeo, Lima and Peres, Gesture unit segmentation using support vector machines, 2013"
    return _table("gesture", name, urls, "CC BY 4.0", citation, sha256)


def _higgs(name: str, sha256: str) -> Source:
    citation = "Baldi, Sadowski and Whiteson, Searching for exotic particles in high-energy physics, 2014"
    return _array("higgs-small", name, "CC BY 4.0", citation, sha256)


def _house(name: str, sha256: str) -> Source:
    return _array("house", name, "public (unconfirmed)", "DELVE, census-house, from the US Census of 1990", sha256)


# A licence "(unconfirmed)" is what the page of the data set was remembered to say.
TABLE_SOURCES: tuple[Source, ...] = (
    _uci(
        "abalone",
        1,
        "abalone.data",
        "Nash, Sellers, Talbot, Cawthorn and Ford, Abalone, UCI Machine Learning Repository, 1995",
        "de37cdcdcaaa50c309d514f248f7c2302a5f1f88c168905eba23fe2fbc78449f",
    ),
    _uci(
        "adult",
        2,
        "adult.data",
        "Becker and Kohavi, Adult, UCI Machine Learning Repository, 1996",
        "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    ),
    _uci(
        "adult",
        2,
        "adult.test",
        "Becker and Kohavi, Adult, UCI Machine Learning Repository, 1996",
        "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    ),
    _table(
        "buddy",
        "buddy/train.csv",
        (f"{REALTABFORMER}/buddy/train.csv",),
        "not stated",
        "HackerEarth, Adopt a buddy",
        "e7e2b015cf0fbcf925b773a4937f73c3de47273c80a55dea285c341be02ee0fb",
    ),
    _table(
        "california",
        "cal_housing.data",
        (
            "https://ndownloader.figshare.com/files/5976036#CaliforniaHousing/cal_housing.data",
            "https://www.dcc.fc.up.pt/~ltorgo/Regression/cal_housing.tgz#CaliforniaHousing/cal_housing.data",
            f"{GITHUB}/lapets/course-data-science/de59926b097817c130050161bee9d276c850f0ef/cal_housing.data",
        ),
        "not stated, public research data",
        "Pace and Barry, Sparse spatial autoregressions, 1997",
        "a2b44dcc7e1c9091b43c4f458b25cbd1f7e8068d08edd26bc4703108d3fa6214",
        "d3d8a1a722ae78f91134862727d27a70b1415e7d512a89140406248687f4b902",
    ),
    _kaggle(
        "cardio",
        "sulianova/cardiovascular-disease-dataset",
        "cardio_train.csv",
        "unknown",
        "Ulianova, Cardiovascular Disease dataset, Kaggle",
        "21a705d23381b0dfd6a6416da701b490744f1fc3b47e9ff3db3968c420ffa10c",
    ),
    _kaggle(
        "churn2",
        "shrutimechlearn/churn-modelling",
        "Churn_Modelling.csv",
        "CC0 1.0 (unconfirmed)",
        "Iyyer, Churn Modelling, Kaggle",
        "3996cd1fa372e0db0cd9c0ebac35bbd4e8e3c65fb942bb010c826e7b1eeef0a0",
    ),
    _table(
        "default",
        "UCI_Credit_Card.csv",
        (f"{GITHUB}/AlenMa/ML/6b2abae687a486114f3275c67f9011f46dae98cd/data/UCI_Credit_Card.csv",),
        "CC BY 4.0",
        "Yeh, Default of credit card clients, UCI Machine Learning Repository, 2009",
        "36b56c4d0bc2ac0ff2a1e4a1f29ba91bd4cc94cc81cce1629e5750da08f59f7c",
    ),
    _kaggle(
        "diabetes",
        "uciml/pima-indians-diabetes-database",
        "diabetes.csv",
        "CC0 1.0 (unconfirmed)",
        "Smith, Everhart, Dickson, Knowler and Johannes, Using the ADAP learning algorithm to forecast the onset of "
        "diabetes mellitus, 1988",
        "d765aa828a47e8d3ba2f4de925891be77803fd0e9568d7c213cdf10c8e83d0b2",
        "bf81d06e0c0512662862248241ab46d7c29258c6ceaad32f3cab56b52a17fdab",
    ),
    _table(
        "fb-comments",
        "Features_TestSet.csv",
        (
            f"{GITHUB}/wdehrich/facebook-comment-volume-prediction/a0f2c7c395749c488793d3327058bc7e94c8b8b1/data/"
            "Features_TestSet.csv",
            f"{UCI}/static/public/363/facebook+comment+volume+dataset.zip#Dataset/Testing/Features_TestSet.csv",
        ),
        "CC BY 4.0",
        "Singh, Sandhu and Kumar, Comment volume prediction using neural networks and decision trees, 2015",
        "2a44ae9376204719ecd66cc2486481b214848428108b73407ef4e750a3ed9204",
        "a34f2e134109e9d05902ec49c46d496c559cf289a868accaab1023a74988d62d",
    ),
    _gesture("a1_va3.csv", "df3fcdd481cf746e10e380c02f28d4554d7d67e53eda5bfd8b861dcb2037300c"),
    _gesture("a2_va3.csv", "3f921cab6fc8395b26ec772874583fe4eb211e15f856b6bfb45627cf4620fa48"),
    _gesture("a3_va3.csv", "0ef1ae696b179eccfdfc85cdaf6abcf83ff95209060e94185d0b9dfbbed765d3"),
    _gesture("b1_va3.csv", "fc530377ccf5da9fb8d82df04806d853afe988cc3dfead00608696a4a321875b"),
    _gesture("b3_va3.csv", "011a99aa42d984a9ad5f31e191fd6b9f6c4e72ae75c63e804c5e8905b896d115"),
    _gesture("c1_va3.csv", "4f4fe22b7839f696ee0fa8cd50aa6ae8082224db6ddb0767c5d405aa3d98ea42"),
    _gesture("c3_va3.csv", "032dd63b2a5ca1a0b21bfa3feae06cc09bb9f9cf2d4254c621f87cfff3186c42"),
    _higgs("X_num_train", "d6925e645623f35bdbe9026f14c1aa9513637dc60d8b501b0a7c0a83fcbb3912"),
    _higgs("X_num_val", "b44efc5cabfb183fd342d746d8fb2d11bd61f63240fac730c7e0b6d34511443f"),
    _higgs("X_num_test", "d6bb596fa4e6eda90868a42ad4929385067e32599c4a8d70d744c4893ed4617f"),
    _higgs("y_train", "4340eaa29460886c41d1500a4f998c3b2817c5050f505236110c1507f956bbe4"),
    _higgs("y_val", "ee4f8cb3db339cbf0601b413da12f856d063ce6bb1f842ab49945a4335e8f30b"),
    _higgs("y_test", "b11cb8e1768037d615c8d25122f86c4daf39872f1bacce8c44c45a4bd776bee0"),
    _house("X_num_train", "fb9fef9ced868c3ba28e49514df71758a6ca66c83cdbe965fd09c0564b0a354f"),
    _house("X_num_val", "40948a1a6ae7a6da61e9c04e614bee75e1f8802ff8820ac0339b31fd600216a4"),
    _house("X_num_test", "71ccd689605ad1dc6d41a1769214f95cfdf6287b42b1dd2af27dcd0ac9e2d906"),
    _house("y_train", "4e4b763c3bbadea6358e91202f5c4cc67201546f903a50187792b50554d0cd5f"),
    _house("y_val", "c4f4b5be3369b08dea806e7918e73012d36ce4b1d533ced68ee85fc0161c5eb8"),
    _house("y_test", "0eb274b5d09c77711d9317cd7d3fc5c301ec590b76ce3c48aa6e3a3d1f1fc468"),
    _kaggle(
        "insurance",
        "mirichoi0218/insurance",
        "insurance.csv",
        "Open Database License (unconfirmed)",
        "Lantz, Machine learning with R, 2013",
        "388eff679557d08ac19f463d025de5e0b4adc482537c8456d19934d78621fd47",
    ),
    _rows("abalone", "1eb3e06ee3fb10856f0f4f47706ff2f6db41aa0c7fb65b9504b808aca693bacb"),
    _rows("cardio", "dedf3e01a19b4631ff974cea4322fc6923bc696c998dcaa8f471b1741b595894"),
    _rows("insurance", "2b78833afdda9ba619c7c7d521fa6c5124afec4984874e26b90890c999dfd3e2"),
    _rows("miniboone", "c042f6e1c413736b3743b4572078090a79b63127c1fe5d56b5c4cb1b4fc09272"),
)
