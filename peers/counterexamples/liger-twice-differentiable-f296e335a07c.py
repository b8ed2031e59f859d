# verified-losses counterexample f296e335a07c
"""liger: "twice differentiable" does not hold in one process (cross_entropy, convention exact).

Falsified: rank 0, second derivative of logits at [18, 1]: expected 0.0140955672, observed 0, error
0.0141 is 1.47e+07 times its bound

    python liger-twice-differentiable-f296e335a07c.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

import faulthandler
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import tensor

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/liger_kernel.py:LigerCrossEntropyLoss")
ARGUMENTS = {"ignore_index": 0}
WORLD_SIZE = 1
TERMS = ("loss",)
SECONDS = 60  # how long it may run
COTANGENTS = None
STEP = 0.0001  # of the finite differences
ALONG = [{"logits": [[-1.2915275489886784, 0.31398666920019347, -0.9009257694013624, 2.1926226751946887,
              -1.525094136449835, 0.7496218291846074, -0.7271053468378332],
             [1.4872914281545768, -0.7500680202923549, -0.34101441023387813, 0.5568241701400046,
              0.32702647930014866, 0.5039527624275482, -1.2667107393139658],
             [-1.8407309235098235, -1.1908882771226796, -0.2098940360119091, 0.3514630394496595,
              1.0854433426823542, 1.0025584592328742, 0.19017843675776122],
             [-0.057495542786479774, -0.6234094767279962, 0.5587605445875939, -1.1172710428023436,
              -0.6127105249260553, -0.6301722536749593, -0.19587454923019107],
             [1.5179746017432647, 0.33612235415341335, -0.3448034205958127, 1.3078165890496438,
              -0.7177408773171765, -0.7694164184640662, -1.8557688175067444],
             [-0.6299706894943973, 1.1774490977188405, 1.057117194345216, 1.290529065225019,
              -1.4968845500474546, 1.1138795472144432, 1.7438678311816922],
             [0.45491929997684083, 0.40890965213916397, -0.6076402940140347, -3.1141295600672763,
              -1.0116934998813134, 0.5976444741053445, 1.0074494679413188],
             [-0.5189382143429484, -1.5713757045597962, 1.2752259795885685, -0.2662752462720829,
              0.06443546168205351, -1.14621705360912, 0.30503844034185607],
             [-0.611077709368573, 1.0446362231068593, -0.49042494663288766, -2.0576202682879545,
              -0.23664186188260672, -1.060220237889358, 1.4685158997689878],
             [-0.720932473707366, -1.4077339389615038, -1.3752409109420256, 0.15185320157400375,
              1.4204985917249207, -0.26142378194973653, -0.02828704902162703],
             [0.5757839611619666, -1.498032863449103, -0.15433855036088254, 0.5442608743903724,
              -0.5829220249740762, -0.7671268188636451, 0.12804162791369988],
             [-0.1964958741716603, 0.14683746696196087, -0.8996603071029622, -1.534564591892106,
              -0.6933425444614091, -0.7170552139235382, 0.8132240669379979],
             [-1.1239453854743864, -0.14222725578753878, 0.06556382451476749, 0.006034792942925892,
              -0.6899522579628143, 0.4741675434976828, 0.21078380169853844],
             [-0.3676046743556899, -1.1552351092943438, 1.0725260150832736, 1.5493254247806976,
              -1.3255137762935183, -1.4029515193257904, 1.8120616698188525],
             [1.1065002231359953, 0.06744861757964099, -0.7608002931581576, -0.6074381438511772,
              0.35143473838209033, -0.1855550862939393, -0.660095482205983],
             [2.1218851950667883, -0.916151147538821, 0.35558517068824835, -0.4017694986336891,
              0.1457019283888973, -0.9546353817143958, 0.7403522464185508],
             [0.8282357686378649, 0.1412717732346155, -0.5484212774943448, 1.1072020814344765,
              1.1168472619968144, -1.101425864437157, -0.34749685716723067],
             [0.5324947067620748, -0.6949340655943068, -1.0246998728071055, -0.6159980589605579,
              -0.9372488331316767, -0.06431703085062246, 0.8427089234501973],
             [0.04197535363132852, 0.7918712540781864, -1.1041884800953823, 0.04947711200103236,
              -0.8094667573988295, -0.6291515118469159, -1.1522450366499906],
             [-2.0886428585942363, -0.8959149201695165, -1.3433308259859795, -0.9583024426008837,
              -1.355835588108154, 0.048997900487219186, 0.10061482307871979],
             [0.2692697600061397, 0.3237572715381492, 1.4780260867810195, -0.7896033754065752,
              0.22430653216735225, -1.22142500269495, -0.4965605428891786],
             [1.7887805419828866, 0.16351948597727997, -0.7915734942989959, 0.13010794589716693,
              -0.3960509992790601, -1.2883986555412785, -0.9590243751705363],
             [0.7290722407185315, 1.0566600486574689, 1.2814022255462547, -0.9588777589907017,
              -0.8120250324791298, 1.2405111765091934, -1.0452072310562197],
             [-1.426885179134565, 0.5356025359421929, 0.3540054744014073, -0.6867395629979455,
              -0.920292163558134, 0.2630252402941436, 0.014912401354118896]]}]  # how the inputs move
RANK = 0
WHERE = "rank 0, second derivative of logits at [18, 1]"
NAME = "logits"
INDEX = (18, 1)
BOUND = 9.56e-10  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": tensor(
                [[0.11596179621859071, -0.8517546542542065, -1.3208609819736647, 0.9109115475955053,
                  0.32350725123171403, 0.7957752678509208, -0.49566959604577215],
                 [1.4344504778889327, -0.3962687786086304, -1.0487916879891996, -1.2953225747028743,
                  -1.2594296532949574, 1.6485797668753392, 0.6467017722885465],
                 [0.20014972993296057, -2.1203292961619957, 0.2678708574055255, 0.18602411464512822,
                  -0.699971221988764, 1.158405307349834, 0.2630848527082715],
                 [-1.6984263485532793, -0.7305840105550951, -1.3478575175550394,
                  -1.6784719735303393, -0.849510284005946, -0.24859499551600817,
                  0.4518488907558744],
                 [0.21952316235421723, -0.05812483725671547, -0.2900528645198854,
                  -0.22577696400901995, -1.3305679942301372, 1.403864252913328,
                  -1.2648113277533315],
                 [0.056951687217909844, -0.36970122282359125, 0.25544914271559, -0.5642348125385005,
                  -1.2076222677988022, -0.9789669611490479, -0.12249632937997715],
                 [-0.2047333236998236, 0.8312558165825551, -2.636278616793199, 0.3458907587872707,
                  -0.13972631819753514, -1.2040378527577011, 0.48667269821513487],
                 [1.1992623178668667, -0.2735200350836153, -1.7756028748297303, -0.2447550984701833,
                  -0.6399841475091778, -0.8259911196173546, -0.3625617535716078],
                 [-0.7024134126421331, 0.5134669859795026, 0.019059954315064482, -1.909527322634352,
                  0.37594867738159643, -0.40022678965377895, -0.7715780336788254],
                 [-0.021553339326036553, 1.3989986087308968, -1.6793469455419634,
                  -0.28141832340652173, 1.0151573753580834, -0.20263928264674116,
                  -0.29802597829035654],
                 [-1.2010453404713364, -0.43459423588018464, -1.2743020383977157,
                  2.2674728674739724, -1.1246872994686377, 0.8955759720962195,
                  -0.6292651424066356],
                 [1.8915308249966285, -1.0486455622888375, -1.495457339819188, 0.9687679816281544,
                  0.5164396514374439, 0.4969118702092103, 1.295190367036787],
                 [1.4641731005717493, -0.09368569525785886, 1.501061061950105, 0.6265577775551688,
                  -0.29127183967564596, 0.2518686895848248, 1.0670963260287532],
                 [-0.0069470147327109905, -0.635113407296697, 0.6536044115967309, 0.900682033848495,
                  1.7687752878548244, 0.0943867307635363, -1.6457320551075538],
                 [-0.6872348297644645, 0.6932773566035441, -1.1994415364233912,
                  -0.004741650304306736, 0.6039491806240554, 1.134991405638193,
                  -1.2368731390699037],
                 [-1.3131618510719238, 0.6464508454656533, -1.497813864692218, -0.8231773825192271,
                  -0.9286637901485837, -0.5447203805198557, -0.97906706074379],
                 [-0.3022487053433827, 0.11858557727934153, -1.5509372052725585, 1.4657741054089433,
                  0.5966700837590494, 0.29349829614722184, -1.3350028444416175],
                 [0.06869085683855064, 1.5195644360528116, 0.7256882048051786, 0.4185381417103375,
                  1.739093212156164, 0.9860318339926287, -0.9078443306618642],
                 [-1.0320295543193656, 1.4657132499254832, 0.17780023196475805,
                  -0.38165185560344916, 1.4542572898158832, -2.535132241493914,
                  1.5770170372287007],
                 [-0.7248910216433856, -0.30865087347267894, -1.2761880538619594,
                  -0.848207795614043, -0.20048085630310852, -0.6912920214428202,
                  -0.16509883444056228],
                 [-0.4532573672112367, 0.8394071695746663, -0.24675984181948854, 0.3111883737196959,
                  0.08230948313887498, 0.22368190725247045, 0.9688087897986155],
                 [-0.6390967443019664, -1.1016160722125323, -0.06656522096211781,
                  -0.9782190131533831, 0.580329095613523, 1.2199452731336071,
                  -0.11119291168544274],
                 [0.683966996196634, 1.526507843531557, 0.28328145550741685, -0.028042263421281025,
                  -0.5532588731020596, -0.08347444945772303, 0.39299789518067957],
                 [1.2889377639897397, -0.9039688795388621, -1.3717153721199982, 1.3158754289186045,
                  -0.32894389937024227, 0.9284230268591382, 1.6874200622540085]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor(
                [1, 1, 6, 6, 6, 3, 2, 4, 5, 3, 1, 1, 2, 6, 1, 4, 5, 2, 5, 3, 5, 2, 2, 2]
            ),
        },
    ]


def build(target, rank, world_size=WORLD_SIZE):
    """Construct what is tested."""
    return target(**accepted(target, {**ARGUMENTS, "rank": rank, "world_size": world_size}))


def gradients(loss, rank, offset):
    """Return what a rank is given, moved along ALONG, and the gradients there."""
    given = inputs()[rank]
    output_dict = True
    with torch.no_grad():
        for name, along in ALONG[rank].items():
            given[name] += offset * tensor(along, dtype=torch.float64)
    output = loss(**given, **({"output_dict": True} if output_dict else {}))
    live = [(term, COTANGENTS[rank][name] if COTANGENTS else 1.0) for name, term in output.items() if term.requires_grad]
    leaves = [given[name] for name in ALONG[rank]]
    terms, weights = [term for term, _ in live], [torch.full_like(term, weight) for term, weight in live]
    return leaves, torch.autograd.grad(terms, leaves, weights, create_graph=True, materialize_grads=True)


def act(target, rank):
    """Return how the gradient changes along ALONG: derived again, and as the gradient itself shows."""
    loss = build(target, rank)
    leaves, first = gradients(loss, rank, 0.0)
    along = [tensor(value, dtype=torch.float64) for value in ALONG[rank].values()]
    paired = sum((grad * value).sum() for grad, value in zip(first, along, strict=True))
    derived = [torch.zeros_like(leaf) for leaf in leaves]
    if paired.requires_grad:
        derived = torch.autograd.grad(paired, leaves, materialize_grads=True)
    after, before = gradients(loss, rank, STEP)[1], gradients(loss, rank, -STEP)[1]
    difference = [(a - b) / (2 * STEP) for a, b in zip(after, before, strict=True)]
    return {
        side: {name: value.detach().numpy() for name, value in zip(ALONG[rank], values, strict=True)}
        for side, values in (("expected", difference), ("observed", derived))
    }


def agree(expected, observed):
    """Print both sides; return whether they are as near as rounding allows."""
    expected, observed = float(expected), float(observed)
    error = abs(observed - expected)
    print(WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n  ")
    print(f"  error/bound {error:.3g}/{BOUND:.3g}")
    return error <= BOUND


def judge(target, ranks):
    """Compare the two calls; return whether they agree."""
    return agree(ranks[RANK]["expected"][NAME][INDEX], ranks[RANK]["observed"][NAME][INDEX])


# How it is run.


def accepted(target, arguments):
    """Return those of `arguments` that `target` takes."""
    if getattr(target, "__init__", None) is torch.nn.Module.__init__:
        return {}  # its signature takes all, and it refuses each
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def find_target():
    """Import TARGET, seen from the current folder or from the one that this file was written from."""
    place, _, name = TARGET.rpartition(":")
    folders = [Path.cwd(), Path(__file__).resolve().parent / "../.."]
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    file = next((folder / place for folder in folders if (folder / place).exists()), Path(place))
    spec = importlib.util.spec_from_file_location("target", file)
    sys.modules["target"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def verdict(rank):
    """Run one rank; return 0 where the law holds, 1 where it does not, 2 where that cannot be seen."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # whoever hangs says where
    try:
        target = find_target()
    except BaseException:
        traceback.print_exc()
        return 2
    everyone = [act(target, rank)]
    return 0 if judge(target, everyone) else 1


def main():
    """Return the exit status."""
    return verdict(0)


if __name__ == "__main__":
    sys.exit(main())
