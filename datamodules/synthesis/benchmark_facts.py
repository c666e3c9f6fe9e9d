"""The 16 tables of TabDDPM (Kotelnikov et al., ICML 2023): what their columns are and where their rows come from.

Columns, types and splits are those of the published arrays; names of columns are those of the raw files. An edition
reads: files, rows, reader, published split, rows of each class.
"""

from functools import partial

import numpy as np

from datamodules.synthesis import raw_tables as raw
from datamodules.synthesis import row_splits
from datamodules.synthesis.benchmark_schema import Dataset, Edition
from datamodules.synthesis.row_splits import drawn, listed

UCI = "https://archive.ics.uci.edu/dataset"
KAGGLE = "https://www.kaggle.com/datasets"
OPENML = "https://www.openml.org/d"
WILT_ROWS = (
    "https://raw.githubusercontent.com/avsolatorio/REaLTabFormer-Experiments/"
    "dc5e13ba2d88031744f65d1d8bd983932f0ce72a/data/repo/wilt/wilt_idx.json"
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ABALONE_NUMBERS = _names("Length Diameter Height Whole_weight Shucked_weight Viscera_weight Shell_weight")
ADULT_COLUMNS = _names(
    "age workclass fnlwgt education education-num marital-status occupation relationship race sex capital-gain "
    "capital-loss hours-per-week native-country income"
)
CALIFORNIA_COLUMNS = _names(
    "longitude latitude housingMedianAge totalRooms totalBedrooms population households medianIncome medianHouseValue"
)
FACEBOOK_COLUMNS = tuple(f"c{number}" for number in range(53))
FACEBOOK_CATEGORIES = ("c3", *FACEBOOK_COLUMNS[39:])  # the kind of page, and twice a weekday as 0 or 1
FACEBOOK_DROPPED = ("c14", "c37")  # almost constant
HOUSE_SPLIT = drawn(0, 1, stratified=False)
HOUSE_ORDER = np.concatenate([*HOUSE_SPLIT(np.zeros(22_784)).values()])  # the raw row of each published row
ARRAY_FILES = tuple(f"{name}_{part}.npy" for name in ("X_num", "y") for part in row_splits.PARTS)

DATASETS: dict[str, Dataset] = {
    "abalone": Dataset(
        task="regression",
        page=f"{UCI}/1/abalone",
        numerical=ABALONE_NUMBERS,
        categorical=("Sex",),
        target="Rings",
        sizes=(2672, 669, 836),
        editions=(
            Edition(
                ("abalone/abalone.data",),
                4177,
                partial(raw.plain, names=("Sex", *ABALONE_NUMBERS, "Rings")),
                listed("tabular/abalone/abalone_idx.json"),
            ),
        ),
    ),
    "adult": Dataset(
        task="binclass",
        page=f"{UCI}/2/adult",
        numerical=_names("age fnlwgt education-num capital-gain capital-loss hours-per-week"),
        categorical=_names(
            "workclass education marital-status occupation relationship race sex native-country",
        ),
        target="income",
        sizes=(26_048, 6513, 16_281),
        editions=(
            Edition(
                ("adult/adult.data", "adult/adult.test"),
                48_842,
                partial(raw.adult, names=ADULT_COLUMNS),
                row_splits.adult,
                (37_155, 11_687),
            ),
        ),
        number_type="float32",
        category_type="<U26",
    ),
    "buddy": Dataset(
        task="multiclass",
        page=f"{KAGGLE}/akash14/adopt-a-buddy",
        numerical=_names("issue_date listing_date length(m) height(cm)"),
        categorical=_names("condition color_type X1 X2 pet_category"),
        target="breed_category",
        sizes=(12_053, 3014, 3767),
        editions=(Edition(("buddy/train.csv",), 18_834, raw.buddy, drawn(0, 0, stratified=True), (9000, 8357, 1477)),),
        dropped=("pet_id",),
    ),
    "california": Dataset(
        task="regression",
        page="https://www.dcc.fc.up.pt/~ltorgo/Regression/cal_housing.html",
        numerical=_names("MedInc HouseAge AveRooms AveBedrms Population AveOccup Latitude Longitude"),
        target="MedHouseVal",
        sizes=(13_209, 3303, 4128),
        editions=(
            Edition(
                ("california/cal_housing.data",),
                20_640,
                partial(raw.california, names=CALIFORNIA_COLUMNS),
                drawn(0, 1, stratified=False),
            ),
        ),
        number_type="float32",
        target_type="float32",
    ),
    # The validation part is larger than the test part, as published.
    "cardio": Dataset(
        task="binclass",
        page=f"{KAGGLE}/sulianova/cardiovascular-disease-dataset",
        numerical=_names("age height weight ap_hi ap_lo"),
        categorical=_names("gender cholesterol gluc smoke alco active"),
        target="cardio",
        sizes=(44_800, 14_000, 11_200),
        editions=(
            Edition(
                ("cardio/cardio_train.csv",),
                70_000,
                partial(raw.plain, delimiter=";"),
                listed("tabular/cardio/cardio_idx.json", row_splits.CARDIO_REPLACED),
                (35_021, 34_979),
            ),
        ),
        dropped=("id",),
        category_type="<U21",
    ),
    "churn2": Dataset(
        task="binclass",
        page=f"{KAGGLE}/shrutimechlearn/churn-modelling",
        numerical=_names("CreditScore Age Tenure Balance NumOfProducts EstimatedSalary EstimatedSalary_copy"),
        categorical=_names("Geography Gender HasCrCard IsActiveMember"),
        target="Exited",
        sizes=(6400, 1600, 2000),
        editions=(
            Edition(("churn2/Churn_Modelling.csv",), 10_000, raw.churn, drawn(0, 1, stratified=True), (7963, 2037)),
        ),
        dropped=_names("RowNumber CustomerId Surname"),
        number_type="float32",
        category_type="<U21",
    ),
    # No sums of its published arrays are known: their types and the order of their columns are assumed.
    "default": Dataset(
        task="binclass",
        page=f"{UCI}/350/default+of+credit+card+clients",
        numerical=_names(
            "LIMIT_BAL AGE PAY_0 PAY_2 PAY_3 PAY_4 PAY_5 PAY_6 BILL_AMT1 BILL_AMT2 BILL_AMT3 BILL_AMT4 BILL_AMT5 "
            "BILL_AMT6 PAY_AMT1 PAY_AMT2 PAY_AMT3 PAY_AMT4 PAY_AMT5 PAY_AMT6"
        ),
        categorical=_names("SEX EDUCATION MARRIAGE"),
        target="Default",
        sizes=(19_200, 4800, 6000),
        editions=(
            Edition(
                ("default/UCI_Credit_Card.csv",), 30_000, raw.default, drawn(0, 0, stratified=True), (23_364, 6636)
            ),
        ),
        dropped=("ID",),
        category_type="<U21",
    ),
    "diabetes": Dataset(
        task="binclass",
        page=f"{KAGGLE}/uciml/pima-indians-diabetes-database",
        numerical=_names("Pregnancies Glucose BloodPressure SkinThickness Insulin BMI DiabetesPedigreeFunction Age"),
        target="Outcome",
        sizes=(491, 123, 154),
        editions=(Edition(("diabetes/diabetes.csv",), 768, raw.plain, drawn(0, 0, stratified=True), (500, 268)),),
    ),
    "fb-comments": Dataset(
        task="regression",
        page=f"{UCI}/363/facebook+comment+volume+dataset",
        numerical=tuple(sorted(set(FACEBOOK_COLUMNS) - {*FACEBOOK_CATEGORIES, *FACEBOOK_DROPPED})),  # c0, c1, c10, ...
        categorical=FACEBOOK_CATEGORIES,
        target="target",
        sizes=(157_638, 19_722, 19_720),
        editions=(
            Edition(
                ("fb-comments/Features_Variant_5.csv",),
                199_030,
                partial(raw.plain, names=(*FACEBOOK_COLUMNS, "target")),
                row_splits.facebook,
            ),
            Edition(
                ("fb-comments/Features_TestSet.csv",),
                10_044,
                partial(raw.plain, names=(*FACEBOOK_COLUMNS, "target")),
                row_splits.facebook,
                variant="features-test-set",  # the archive's other part
            ),
        ),
        dropped=FACEBOOK_DROPPED,
        number_type="float32",
        category_type="<U21",
        target_type="float32",
        target_quantile=0.99,
    ),
    "gesture": Dataset(
        task="multiclass",
        page=f"{UCI}/302/gesture+phase+segmentation",
        numerical=tuple(str(number) for number in range(1, 33)),
        target="Phase",
        sizes=(6318, 1580, 1975),
        editions=(
            Edition(
                tuple(f"gesture/{video}_va3.csv" for video in _names("a1 a2 a3 b1 b3 c1 c3")),
                9873,
                raw.gesture,
                drawn(0, 1, stratified=True),
                (2741, 998, 2097, 1087, 2950),
            ),
        ),
        number_type="float32",
    ),
    "higgs-small": Dataset(
        task="binclass",
        page=f"{OPENML}/23512",
        numerical=_names(
            "lepton_pT lepton_eta lepton_phi missing_energy_magnitude missing_energy_phi jet1pt jet1eta jet1phi "
            "jet1b-tag jet2pt jet2eta jet2phi jet2b-tag jet3pt jet3eta jet3phi jet3b-tag jet4pt jet4eta jet4phi "
            "jet4b-tag m_jj m_jjj m_lv m_jlv m_bb m_wbb m_wwbb"
        ),
        target="class",
        sizes=(62_751, 15_688, 19_610),
        editions=(
            Edition(
                tuple(f"higgs-small/{file}" for file in ARRAY_FILES),
                98_049,
                raw.arrays,
                row_splits.in_order(62_751, 15_688, 19_610),
                (46_223, 51_826),
            ),
            Edition(
                tuple(f"higgs-small/{file}" for file in ARRAY_FILES if "train" not in file),
                35_298,
                raw.arrays,
                drawn(0, 1, stratified=True),
                (16_641, 18_657),
                variant="validation-and-test-rows",  # drawn anew
            ),
        ),
        number_type="float32",
    ),
    "house": Dataset(
        task="regression",
        page=f"{OPENML}/574",
        numerical=_names("P1 P5p1 P6p2 P11p4 P14p9 P15p1 P15p3 P16p2 P18p2 P27p4 H2p2 H8p2 H10p1 H13p1 H18pA H40p4"),
        target="price",
        sizes=(14_581, 3646, 4557),
        editions=(
            Edition(("house/house_16H.csv",), 22_784, raw.plain, HOUSE_SPLIT),
            Edition(
                tuple(f"house/{file}" for file in ARRAY_FILES),
                22_784,
                partial(raw.arrays, order=HOUSE_ORDER),
                HOUSE_SPLIT,
            ),
        ),
        number_type="float32",
        target_type="float32",
    ),
    "insurance": Dataset(
        task="regression",
        page=f"{KAGGLE}/mirichoi0218/insurance",
        numerical=_names("age bmi children"),
        categorical=_names("sex smoker region"),
        target="charges",  # published without the cents
        sizes=(856, 214, 268),
        editions=(
            Edition(("insurance/insurance.csv",), 1338, raw.plain, listed("tabular/insurance/insurance_idx.json")),
        ),
    ),
    # The row's id is a feature, as published. No sums of the published arrays are at hand: their types are assumed.
    "king": Dataset(
        task="regression",
        page=f"{KAGGLE}/harlfoxem/housesalesprediction",
        numerical=_names(
            "id date bedrooms bathrooms sqft_living sqft_lot floors grade sqft_above sqft_basement yr_built "
            "yr_renovated zipcode lat long sqft_living15 sqft_lot15"
        ),
        categorical=_names("waterfront view condition"),
        target="price",
        sizes=(13_832, 3458, 4323),
        editions=(Edition(("king/kc_house_data.csv",), 21_613, raw.king, listed("tabular/king/split_idx.npz")),),
        category_type="<U21",
        target_type="float64",
    ),
    "miniboone": Dataset(
        task="binclass",
        page=f"{UCI}/199/miniboone+particle+identification",
        numerical=tuple(f"ParticleID_{number}" for number in range(50)),
        target="signal",
        sizes=(83_240, 20_811, 26_013),
        editions=(
            Edition(
                ("miniboone/MiniBooNE_PID.txt",),
                130_064,
                raw.miniboone,
                listed("tabular/miniboone/miniboone_idx.json"),
                (93_565, 36_499),
            ),
            Edition(
                ("miniboone/miniboone_subset_5044.csv",),
                5044,
                raw.plain,
                drawn(0, 1, stratified=True),
                (3673, 1371),
                variant="subset-5044",  # a random part of the rows, with values to five digits
            ),
        ),
    ),
    # Types are assumed, as for king.
    "wilt": Dataset(
        task="binclass",
        page=f"{OPENML}/40983",
        numerical=_names("V1 V2 V3 V4 V5"),
        target="Class",
        sizes=(3096, 775, 968),
        editions=(
            Edition(
                ("wilt/wilt.csv",), 4839, raw.wilt, listed("tabular/wilt/wilt_idx.json", page=WILT_ROWS), (4578, 261)
            ),
        ),
        dropped=("id",),
    ),
}
