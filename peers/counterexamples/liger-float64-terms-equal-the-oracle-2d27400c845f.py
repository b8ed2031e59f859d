# verified-losses counterexample 2d27400c845f
"""liger-float64: "terms equal the oracle" does not hold in one process (cross_entropy).

Falsified: rank 0, loss: expected 3.25256488, observed 3.25256488, error 6.72e-10 is 2.06e+04 times
its bound

    python liger-float64-terms-equal-the-oracle-2d27400c845f.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.machinery import PathFinder
from numpy.typing import NDArray
from pathlib import Path
from torch import tensor
from types import ModuleType
from typing import Any
from typing import NoReturn
import ast
import faulthandler
import functools
import importlib.util
import inspect
import numpy as np
import os
import sys
import sysconfig
import torch
import traceback

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/liger_kernel.py:LigerCrossEntropyLoss")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"ignore_index": 0}
WORLD_SIZE = 1
TERMS = ("loss",)
SECONDS = 60  # how long it may run
COTANGENTS = [{"loss": -0.7815652455505645}]  # what each rank's terms are multiplied with
WHERE = "rank 0, loss"
RANK = 0
KIND = "term"
NAME = "loss"
INDEX = ()
ALONG = None  # or a direction, instead of one element
BOUND = 3.266e-14  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": tensor(
                [[-0.24395548348890916, 0.7741310211735144, 0.7073606530012945, -0.6977408771505392,
                  0.5512503353414344, -1.9098350217478446, -0.3461670495753346, -0.2200588694502967,
                  -0.13303451148409362, -1.0841347274004411, -0.34206315075489985,
                  0.4582152149376504, -0.020448473977649456, -1.010451015341159,
                  -0.33509064688200196, 1.1195412832146179],
                 [-0.9249300245671139, -0.15538522484618464, 0.8900764998032737,
                  -0.9873193106554132, -1.210872830380698, 0.14923613427596544, -1.3288140876432346,
                  0.4231491303088029, 0.787458831174374, -3.4831781115901963, -0.6093593624235248,
                  -0.9926072258694275, -0.6920129252442738, -0.26556613292771963,
                  -0.3072724952822776, 1.4356221848686757],
                 [1.5523556956483526, -0.7303550693199156, -0.6323095586904922, -0.7477096096131987,
                  -1.1193863231135563, 1.3842374459165978, -0.3049527186182482, 0.18270544697968236,
                  0.24738350432985476, 0.9879000300888033, -1.5290726386373532, 0.28091163489656235,
                  -1.7274472499722364, -2.1768997361969014, -0.7876481244761949,
                  0.19864016525427192],
                 [0.9727879857157455, 0.3267487775349555, 0.4205179305987408, -1.5209860417300205,
                  0.3019359709271216, 1.7902072737480492, 0.42070487029555786, -0.33530754835697196,
                  -0.7443798697437665, 0.11343729597676727, 0.8586248013361978, 0.29001743187295215,
                  -0.45989773033263875, -1.8226691664295056, -1.3254888710189758,
                  0.8973811212681723],
                 [-0.47297895085054337, 0.6336773600169744, 0.6017640595946471, 0.3822176162849797,
                  -0.06389314877213435, 0.33535636103422845, -0.22348999942542874,
                  -1.0447824676670698, 0.558244526288342, -0.25639067962058365, -0.5548458667570068,
                  -0.16577479424705296, 0.09428034667972682, 1.6590631431697618,
                  -0.2481004201442307, 0.13638052087428165],
                 [0.22048255580373752, 0.7594622163459509, -0.8666290301200181, 0.14444911247718545,
                  -0.33322733571445134, -0.5909620996075015, -0.12161600517241512,
                  -0.5912428429515827, 2.026978806834139, 0.864993892543393, -0.015450660208833214,
                  -0.9791080651863995, -1.1979965372721402, 0.0528722802898979, 2.655940386175345,
                  0.11526408987192578],
                 [-0.7355163111713268, -0.8915442755352102, 2.2257319739790487, 1.2204603973244927,
                  -0.5920141073210915, 0.5289334084811907, -1.5990991827105436, 0.9420834669131717,
                  0.2486842558927697, 0.9621127983736116, -1.1977923180441938, 0.6509372828489026,
                  -0.19546174509952927, 0.5092950061978121, -0.18213304947688078,
                  0.3093831589730615],
                 [-0.45311139028326103, -0.08374774171041507, -0.3167402296964921,
                  -0.6685307673731236, -0.678386284393431, 1.7381699718039623, -0.14884301009429665,
                  0.1765079097266373, -1.5468941644475942, 0.13879383278008992, 1.4859826720123535,
                  2.549707266584823, 1.9978733870328456, 1.1600029317096805, 0.9507412436304681,
                  0.9025455302583233],
                 [-0.4322058852514665, 0.08835000704555929, 0.10231202772074002,
                  -1.6876180218724994, -0.15108956531572318, 0.428964238504358,
                  0.056831035225259244, 0.7205308156376187, 0.11062948363041829, 0.297387189402197,
                  -0.8386221658991239, -0.2464040277520442, 0.4258101726894973,
                  -0.06616479278024717, 0.8099734934630318, 0.05442776201400507],
                 [-1.4129338536456186, 0.8855751210132197, 1.6706429164284, -0.8003262781355257,
                  -0.7724823327522531, 0.6957590508306193, -0.03644671148539653,
                  -0.5430047862443615, -0.7311744562608806, 2.0109094778566288, -0.4699865808361145,
                  1.8995166828541952, 0.03365751028049789, 1.2314541383796944, -1.005705742136868,
                  1.0570630215086454],
                 [-0.7949570551063462, 0.4077102842614758, -1.3239918201470755, -0.4885914320685184,
                  0.5683687495384141, -0.5877270357472171, -0.009166996184639205,
                  -0.2563463540705091, 0.9250887608525862, 0.5831688264834305, -0.4417424185719036,
                  -0.12729908711454038, 1.2238610983881697, 0.030223475692370588,
                  1.5032439034904699, -1.0333596497134672],
                 [-0.04641956340613615, -0.8350207037536728, 0.07305327794506189,
                  -1.070163180545872, -1.9420303072559388, 0.002499687269395934,
                  -0.009394593289185975, -2.0115753352257024, 0.5258237360769424,
                  -1.0732569265390446, -0.5366127990988877, -0.8361386754693674,
                  -1.7087498098474574, -2.782930197707934, 0.45872960318453226,
                  -0.9226453067168752],
                 [0.7620179680240314, -0.10689176828035185, 0.23629242972717066,
                  -0.30888548424495704, 0.30287095928797386, 1.2778962204707756,
                  -0.18339401724457247, -0.48705375858175254, -1.877703306938974,
                  -0.5150013349008296, -1.779899063359545, -0.9427393522478345, -0.7112624142428476,
                  -0.4032164522585806, -0.34449727002377034, 1.1386273837180303],
                 [0.4836731323670514, 0.1951779572498271, 1.5421454969845458, 1.608508832125975,
                  1.981765285392425, -0.3595085641797545, -1.2540526299816979, -0.7004414600014522,
                  0.9147853536791661, -1.256822661992496, 1.582799949975203, 1.506421910449344,
                  -1.6158388406525077, 0.7906508402226509, -0.6738827440052679, 1.320625711811796],
                 [-1.1587457083142219, -0.6304050883903758, -0.5101815626600785, 1.3536628667458652,
                  1.225864373357466, 0.27255938242630107, 1.9633341446946635, -0.121578946775357,
                  -0.6549380247644823, -1.69597285325573, -0.08905521198709364,
                  -0.012126387360186543, -1.33847876731571, 2.318292953233481, -0.4500652676954431,
                  -1.2070090543831755],
                 [0.6155263673525745, -0.04970351190934898, -0.7778192918381259, 0.2977016769358073,
                  -0.8958279803677972, 0.8844981132139668, 0.6110608185787966, -0.5525396652948615,
                  -1.332978993619596, -1.192497244739724, 0.16486682429324598, -1.3635202863947344,
                  0.4387731973675296, 0.28849990053181557, -1.6836452141757685,
                  -1.0117370098102911],
                 [0.6745528908687558, 0.2336870461507996, -0.009662142810593088,
                  0.15521137629901477, 0.1803391354437109, 3.3505430874620377, -0.36286791909605015,
                  -0.020247039655616073, -1.2920457482354177, -0.7848267779771674, 1.17770676789487,
                  0.20073637304074282, -0.5541846959413156, 0.2306697806627327, 0.13529461144757296,
                  0.30201730392861115],
                 [0.006476071479533219, -0.04410472046211673, -0.17433319601437813,
                  -1.108486586486956, -0.7093223619910268, 1.0019488837664956, 0.217256067404888,
                  0.7878798472220229, 1.0089700386713845, -1.6439248004398546, -0.9552560863233195,
                  -1.537256886985233, -0.4697603504425093, 1.0092781740665766, 0.6226913950809353,
                  0.2935916401130632],
                 [-1.2354050878977496, 0.3898422116470733, 0.7219016540694282, 0.849076912807052,
                  1.6028781939874468, 0.9137193998661621, 0.08239307378421669, -0.4840564573130475,
                  0.16464775234351153, 0.9886079715941959, 0.18444781821124384, 2.0029597958054497,
                  -2.1558794277431077, 0.7090282809581756, -0.013792004721624044,
                  -0.7012525236364032],
                 [0.669473461285082, 0.7469000835612825, 0.18941639245428785, -0.2856136368856183,
                  0.3701607964704318, -0.521618230845217, 1.358390885045931, 1.1447373909997722,
                  -1.013961631104284, -0.6385738434250382, -0.835078817206568, -0.3687018459146317,
                  -0.5064405284636119, 0.07992432387798115, 0.721210281736881,
                  -1.8110900312912652],
                 [0.5407628515338206, -0.49868683587845297, -0.7593017398118626, 2.4413765007943224,
                  -1.3468477936254954, 1.2012032158275645, -0.8651025016699996, -0.634420355694827,
                  -0.07498028618429411, 0.03955549404681963, -0.7688992106819391,
                  -1.8810335995287937, 0.7057970757391534, -0.5674775950859009, 0.716759041387976,
                  -0.9016071833997509],
                 [0.5019774733652034, -1.4786247058724884, -0.4325074919567565, 2.1092618136803853,
                  1.4394316610775315, 2.4457721358350306, 0.0636247565014716, 0.27968840427310687,
                  -2.0715095922474376, -0.6367560183312784, -0.860214032886551, 1.3320083395110367,
                  -0.15879672045049087, 0.4703585872398932, -1.0011773403918625,
                  0.07143612463570985],
                 [-0.5185584731236046, 0.46682915751144627, 1.0427765693685813,
                  -0.09149809962351912, -1.4476439125096245, -1.3059449507157097,
                  1.1543918021845356, -0.023252992553999957, -1.4523239156525645,
                  -0.0188823293657181, 0.36563036105884555, -0.5611501688554077, 0.1422207684464247,
                  0.962278216281506, -1.0785668193386115, -1.1794504497353837],
                 [-1.3509300547334964, -1.8415605336649468, 0.15670061158717388,
                  -0.4633702724522323, -0.2734458920096192, 1.0204468288317647,
                  -0.11127906920216511, 1.1812524266154374, 1.4693567408240382, 1.7885508770573257,
                  -0.263322238393894, -0.24905305404894437, -0.7540185142408234,
                  -0.6313969747680546, -0.5598649038587556, -2.0977323666097205],
                 [0.2578170601687734, 1.022695356729979, 1.8262719756216974, -0.5545036516218999,
                  0.21297662715466878, -1.165710548736998, -1.1180359569096792, 0.6794743948961899,
                  1.1229734130807778, 0.6287616357248825, -0.34149739585426014,
                  -0.25250098447457825, 1.051322339669159, 1.6154897206221983, -0.2179480032626946,
                  -1.8471541937936145],
                 [-1.211276246823885, 0.3200065014087354, 3.454912348662712, 0.13666190815711834,
                  -0.9910183019726332, -1.8581806259892586, 0.63860298552248, -0.06878049837902303,
                  -0.8469063889640369, 1.3132392173447673, -0.7626635154996929,
                  -0.07068490583082328, 0.6580167887490352, -0.10191028861078764,
                  -0.9821980726806963, 0.5505387687009411],
                 [-1.5552136337535631, -1.1780507878878896, -0.17201604327906148,
                  -1.645249595936615, -0.24827305431321203, 1.1051595621609172, 1.4307537678942464,
                  2.6207968288147083, -0.7535291841409725, 0.5782531062374803, 0.5954849936154094,
                  1.4967519207271942, 2.0397849360361744, -0.06672411486184522,
                  -0.32452533789492216, 0.8646871543967031],
                 [0.899556251741993, -0.5651714938780517, -2.059696645205832, 0.7114710261865751,
                  1.0786931284631256, 0.39103371948676185, 0.4449109050988686, 0.5464377678310267,
                  0.8975082110383363, -0.5436692999836648, 1.6532277498433143, 0.5642017282893254,
                  0.24884596922553323, 0.211639592271842, -3.8432322882784407, 0.3664203727301078],
                 [-0.8133445152176463, 0.11568099129797701, -0.05097740190140543,
                  0.6579511458247824, -0.29278178249644354, 1.7873600657346862, 1.1275943629345462,
                  -0.05877426291155527, -0.14590300713288773, 1.0008958198969509,
                  -0.7108020013898061, -0.6713555989647247, -0.19192738481206392,
                  -1.3979149633393675, -0.20134893947069815, -0.7902183322415965],
                 [0.03808517288256141, -0.4856623183283397, -1.5891391981759135,
                  -0.9377784180496626, 0.33291266565015676, 1.9155778233522072,
                  0.022258371261502145, 0.49913019180534324, -1.2388128650757828,
                  0.39054755388875095, 0.985183898795914, 0.6870153224712474, 0.5247680484680193,
                  -1.3978538822260804, 0.7894506134737004, 1.980985936128417],
                 [0.3710833449413606, 1.1845009622070255, -0.27381531337960424, 0.7446088799565358,
                  -0.877327209774455, 0.2309347707043181, -0.2764710644057052, -1.108102590825426,
                  0.002423836300715359, 0.04112552775441106, 0.060779285187801284,
                  0.8194304793950511, 1.438369414188638, -1.582703626417579, -0.04802662805559763,
                  -0.11687935462740114],
                 [0.11437343874060554, -1.0652162382543902, 0.5123043616173387,
                  -0.21413754390620357, -0.5948283868208057, -0.4665578021104415,
                  -0.0687477708416315, -0.5739406220950873, -0.6340703245004846, 1.9836796888724428,
                  1.594467430833137, 0.27427501353991385, -0.28593042884478, 0.5546436361276103,
                  -0.8247871523827555, -1.5647303355783817],
                 [-0.9811253487174907, -0.594176140578167, 0.526408218901504, 1.2644466957378262,
                  -0.16908252673959595, -0.5468248597297252, -0.6476677986774969,
                  -0.2940528092359161, 0.016683034791791194, 0.9210832384398601,
                  -0.10918628800428495, -0.6165019843592028, 0.9462507413531782, 0.9070502004958187,
                  -1.2862490645929647, -0.9652488985310113],
                 [0.050016707652924736, -2.5367653402497896, -1.1530012699259897,
                  -0.7241380435859434, -0.2839221397725818, 2.3372691263615657, 0.6888097785513644,
                  -0.5157827395624602, 0.9368980152998104, -0.07479515602647215,
                  -0.15357687240861245, 0.5557362774126606, -1.456132389285571, 0.2491634386289037,
                  1.8633787165352675, 0.1306744434820227],
                 [0.6059930243395328, -0.2865928577818397, -1.4052315755274614, 0.26399969732809986,
                  -0.4684999611576672, -0.07875246242524059, 0.11120635173744142,
                  -1.0845387132921924, 1.0772638270217947, 1.9466029240803515, 1.459126360587139,
                  1.083196062990548, 1.3778076550866365, -1.5938070572849319, 0.26621287611427713,
                  0.5493832261526383],
                 [-0.4947654153442204, -0.3966202461057216, 0.2510273234180185,
                  -0.10327890476574632, -0.6739295979096077, -1.0567816274448405,
                  -1.0353501098182247, 0.961595812789099, 1.303640323836397, -0.6128839874214892,
                  1.8593527303606778, 0.7181742823728487, 0.20707491561811858, -0.3542790865890734,
                  -0.07231625016436666, -0.8188153767331212],
                 [-0.19006776037175188, -1.1745207774494861, 1.4889177432877287,
                  -0.6060754668532912, 0.9201455345762697, -0.22187321859952513,
                  -0.5169296666975798, 0.9140791441401498, -1.2261238739500804, -0.7443186606466761,
                  2.3944707388077098, 0.0001620042803187295, -1.4050659796778497,
                  0.33071017960117255, -0.8116864392586002, 0.18877206889998904],
                 [0.5559866399863531, 0.4518748931986497, -1.2578096475402873, 1.859030632851574,
                  0.3379812200566687, -0.621194151397834, -0.5824542326440733, 0.456306767683979,
                  -1.5828835174442255, -1.143274778610746, 0.3069232666509445, 0.9464954966264523,
                  0.21046637858359762, -0.20916187243870343, 2.0318792713467873,
                  0.9478619867957453],
                 [-0.2912279062705478, 0.5071198671669152, 0.3722747880187009, -1.234325973402673,
                  -0.34681787618426757, -0.9355153976844311, -0.031772833289555755,
                  -0.33044293058536645, -0.39800755730935966, -0.018004870725487204,
                  -0.5261082153684702, -0.940114409313773, 2.303761495142164, -1.6500836655897915,
                  -0.32754947328515766, 0.21541969201031902],
                 [0.05809537489351267, -0.36407497562991137, 0.1708216388504603,
                  -0.30842989674127597, 0.2436166404625066, 0.696693970458669, -0.0705053070392788,
                  0.27521043838552106, 1.372153389393482, -0.8556796943059047, 1.0028706571874322,
                  0.7832258356951145, -0.7562543596201667, -0.0472016449501036, 0.18550006804349084,
                  0.09314254578112771],
                 [-0.35510991211397347, 0.6263732604507996, -0.11081612590047757,
                  -0.6791826766629193, -0.2337426047041046, -2.22282672741171, 0.5128082451926859,
                  -0.5412572734247275, -0.26037385850712297, 1.1210555835827523,
                  -0.2838948530107201, 0.9421582132042462, -3.3264574680155863, 1.7358409923882447,
                  -0.05512427397694767, -0.16008738477877424],
                 [0.3351382393494466, -0.16159422711210278, 1.1168057976395238, 0.4423670599365723,
                  -2.9560530374000678, -0.7213178257225094, -0.3015123692800737,
                  -0.19655507589289992, 0.5968928797884977, 1.6017928991620343,
                  -0.17480793910794723, 0.7973120185710031, -1.3428025762744955, 0.260059489494996,
                  -0.5796921996999627, 0.11806829814138813]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor(
                [15, 3, 10, 3, 13, 11, 5, 10, 0, 3, 7, 8, 0, 1, 15, 6, 10, 2, 0, 0, 0, 2, 0, 0, 0,
                 10, 0, 3, 10, 11, 15, 2, 0, 0, 0, 0, 8, 0, 0, 0, 0, 9]
            ),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, COTANGENTS),
    ]
    return run_each(calls)


# What the ranks do.


def _unwrapped(target: Any) -> Any:
    """Return what a decorator with functools.wraps, or functools.partial, was given."""
    while True:
        inner = target.func if isinstance(target, functools.partial) else getattr(target, "__wrapped__", None)
        if not callable(inner):
            return target
        target = inner


def accepted(
    target: Any, arguments: dict[str, Any], optional: tuple[str, ...] = ("convention", "chunk_size")
) -> dict[str, Any]:
    """Return those of `arguments` that `target` takes."""
    if getattr(_unwrapped(target), "__init__", None) is torch.nn.Module.__init__:
        return {}  # its signature takes all, and it refuses each
    inner = _unwrapped(target)
    is_class = inspect.isclass(inner)
    owner = inner if is_class else type(getattr(inner, "__self__", inner))
    method = "__init__" if is_class else getattr(inner, "__name__", "__call__")
    classes = [base for base in owner.__mro__ if base not in (object, torch.nn.Module)]
    named: set[str] = set()
    for function in [target, *(getattr(base, method) for base in classes if method in vars(base))]:
        parameters = inspect.signature(function).parameters
        named.update(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return {name: value for name, value in arguments.items() if name in named}
    return {name: value for name, value in arguments.items() if name in named or name not in optional}


def construct(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Construct a loss; arguments that it does not take are left out."""
    return target(**accepted(target, {**arguments, "rank": rank, "world_size": world_size}))


def call_in_order(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss with tensors in order; its parameters may have any names."""
    return loss(*given.values())


@dataclass(frozen=True)
class Call:
    """One call of a loss on one rank, and its backward."""

    build: Callable[[], Any]
    """Constructs the loss."""
    call: Callable[[Any, dict[str, torch.Tensor]], Any]
    """Calls it."""
    given: Callable[[], dict[str, torch.Tensor]]
    """Makes the leaf tensors that it is called with."""
    cotangent: Callable[[str, torch.Tensor], torch.Tensor]
    """Makes what backward gets for a term."""
    terms: tuple[str, ...]
    rank: int
    mode: str = "train"


def called(
    target: Any,
    rank: int,
    inputs: Callable[[], list[dict[str, torch.Tensor]]],
    cotangents: list[dict[str, Any]] | None = None,
    mode: str = "train",
    output_dict: bool = True,
    layout: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous,
    world_size: int = WORLD_SIZE,
    arguments: dict[str, Any] = ARGUMENTS,
) -> Call:
    """Return a call of `target`; what backward gets is ones unless told."""

    def cotangent(name: str, term: torch.Tensor) -> torch.Tensor:
        if cotangents is None:
            return layout(torch.ones(term.shape, dtype=term.dtype, device=term.device))
        return layout(torch.tensor(cotangents[rank][name], dtype=torch.float64).to(term.device, term.dtype))

    return Call(
        lambda: build(target, arguments, rank, world_size),
        lambda loss, given: call(loss, given, output_dict),
        lambda: inputs()[rank],
        cotangent,
        TERMS,
        rank,
        mode,
    )


Array = NDArray[Any]


@dataclass
class Outcome:
    """What one rank saw of one call."""

    structure: str
    """"dict", "tuple" or "Tensor", and the terms' names where it is a dict."""
    terms: dict[str, Array]
    term_types: dict[str, str]
    """Dtype and device of each term."""
    gradients: dict[str, Array | None] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """Inputs whose content the call altered, and cotangents whose content its backward did."""
    refused: str = ""
    """Why there is nothing to see: the target does not take part, which is no defect."""

    @property
    def types(self) -> list[str]:
        """The dtypes and devices that there are among the terms."""
        return sorted(set(self.term_types.values()))


class Malformed(AssertionError):
    """The subject returned something that is not what its contract says."""


def backward(one: Call, terms: dict[str, torch.Tensor], keep: bool = False) -> list[str]:
    """Run backward from all terms together, each with its cotangent; return whose it altered."""
    live = {name: term for name, term in terms.items() if term.requires_grad}
    cotangents = {name: one.cotangent(name, term) for name, term in live.items()}
    before = {name: value.clone() for name, value in cotangents.items()}
    if live:
        torch.autograd.backward(list(live.values()), list(cotangents.values()), retain_graph=keep)
    return [name for name, value in cotangents.items() if not torch.equal(value, before[name])]


def read(output: Any, names: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return how the output is structured, and its terms by name."""
    if isinstance(output, dict):
        return f"dict {sorted(output)}", {k: v for k, v in output.items() if k in names}
    if isinstance(output, tuple | list):
        return f"tuple of {len(output)}", dict(zip(names, output, strict=False))
    return type(output).__name__, {names[0]: output}


def to_array(value: torch.Tensor) -> Array:
    """Return the values as float64, wherever the tensor is."""
    return value.detach().double().cpu().numpy()


def run(one: Call, loss: Any, given: dict[str, torch.Tensor]) -> Outcome:
    """Call the loss and derive it; return what is seen."""
    if one.mode == "compiled":
        torch.compiler.reset()  # else, after a few cases, it compiles no more and runs what is eager
        loss = torch.compile(loss, backend="aot_eager")
    before = {name: value.detach().clone() for name, value in given.items()}
    with torch.inference_mode(one.mode == "inference"):
        structure, terms = read(one.call(loss, given), one.terms)
    for name, term in terms.items():
        if not isinstance(term, torch.Tensor):
            raise Malformed(f"{name}: expected a torch.Tensor, got {type(term).__name__} {term!r}")
    outcome = Outcome(
        structure,
        {name: to_array(term) for name, term in terms.items()},
        {name: f"{term.dtype} {term.device}".removeprefix("torch.") for name, term in terms.items()},
    )
    altered: list[str] = []
    if one.mode != "inference":
        if one.mode == "derived again":
            backward(one, terms, keep=True)
            for value in given.values():
                value.grad = None
        altered = backward(one, terms)
        for name, value in given.items():
            if value.is_floating_point():
                outcome.gradients[name] = None if value.grad is None else to_array(value.grad)
    outcome.changed = (
        *(name for name, value in given.items() if not torch.equal(value.detach(), before[name])),
        *(f"the cotangent of {name}" for name in altered),
    )
    return outcome


def run_each(calls: list[Call]) -> list[Outcome]:
    """Run each call on an object of its own."""
    return [run(one, one.build(), one.given()) for one in calls]


# How it is judged.


def agree(expected: Any, observed: Any) -> bool:
    """Print both sides; return whether they are as near as rounding allows."""
    expected, observed = float(expected), float(observed)
    error = abs(observed - expected)
    print(WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n  ")
    print(f"  error/bound {error:.3g}/{BOUND:.3g}")
    return bool(error <= BOUND)


def component(seen: Array | None) -> float:
    """Return the element, or the sum along a direction, that is compared; no gradient is zero."""
    if seen is None:
        return 0.0
    return float(seen[INDEX] if ALONG is None else np.sum(seen * np.array(ALONG)))


def part(seen: Outcome) -> Array | None:
    """Return the term, or the gradient, that is compared."""
    return (seen.gradients if KIND == "gradient" else seen.terms)[NAME]


def values(ranks: list[dict[str, torch.Tensor]]) -> list[dict[str, Array]]:
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: to_array(v) if v.is_floating_point() else v.cpu().numpy() for k, v in given.items()}
        for given in ranks
    ]


def judge_term(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one element of one rank's term, or of the mean over ranks, with the oracle's."""
    terms = [np.asarray(one[NAME]).real for one in oracle(values(inputs()))]
    if RANK is None:
        seen = np.mean([component(part(outcomes[0])) for outcomes in ranks])
        return agree(np.mean([one[INDEX] for one in terms]), seen)
    expected = terms[RANK]
    return agree(expected[INDEX], component(part(ranks[RANK][0])))


# The oracle, in NumPy: derivatives are taken by complex steps, exact to rounding.


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    logits, labels = (
        [one[name] for one in given] for name in ["logits", "labels"]
    )
    return [
        {
            "loss": cross_entropy_loss(logits[rank], labels[rank], 0),
        }
        for rank in range(len(given))
    ]


def add_up(values: list[Array], counts: list[int]) -> complex:
    """Return the sum of all elements of all values."""
    parts = [np.sum(one) for one in values]
    result: complex = sum(parts[1:], start=parts[0])
    return result


def log_softmax(logits: Array) -> Array:
    """Return log of exp(z_j) / sum_k exp(z_k) along the last axis."""
    # shifted by the largest so that no exponential overflows; the shift cancels, so it may be constant
    shifted = logits - np.max(np.real(logits), axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log softmax(z)_label for each row of [n, c] logits."""
    picked: Array = log_softmax(logits)[np.arange(len(labels)), labels]
    return -picked


def cross_entropy_loss(logits: Array, labels: Array, ignore_index: int) -> complex:
    """Return the mean of [n, c] logits' cross-entropies, at least one of whose [n] labels counts."""
    kept = labels != ignore_index
    tokens = int(np.count_nonzero(kept))
    loss: complex = add_up([cross_entropy(logits[kept], labels[kept])], [tokens]) / tokens
    return loss


# How it is run.


MOST_STUBS = 100


class NotInstalled(ImportError):
    """The target uses a package that is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"needs {package}, which is not installed", name=package)


def absent_base(package: str) -> type:
    """Return the class that takes the place of a base class of a package: a module without parts."""
    from torch import nn

    class Absent(nn.Module):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if args or kwargs:  # what the real one makes of them is not known
                raise NotInstalled(package)
            super().__init__()

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("__"):
                    raise
                raise NotInstalled(package) from None

    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    vars(Absent)["__init__"].__signature__ = inspect.Signature([me])  # it takes no arguments
    return Absent


class Placeholder:
    """Stands for a name of a package that is not installed."""

    def __init__(self, package: str, name: str) -> None:
        self._package, self._name = package, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(self._package, f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._use()
        decorates = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorates and not isinstance(args[0], Placeholder) else self

    def __getitem__(self, key: Any) -> Any:
        self._use()
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (absent_base(self._package),)

    def __instancecheck__(self, instance: Any) -> bool:
        return False  # nobody can have made one

    def __subclasscheck__(self, subclass: Any) -> bool:
        return False

    def __bool__(self) -> bool:
        self._use()
        return False  # what a module asks as it is loaded is whether something is there

    def __iter__(self) -> Iterator[Any]:
        return self._raise()

    def __len__(self) -> int:
        return self._raise()

    def __enter__(self) -> Any:
        return self._raise()

    def __exit__(self, *error: object) -> None:
        self._raise()

    def __repr__(self) -> str:
        return f"<{self._name}, a stub: {self._package} is not installed>"

    def _use(self) -> None:
        if not STUBS.loading:
            self._raise()

    def _raise(self) -> NoReturn:
        raise NotInstalled(self._package)


def gathered(data: Any, gather: Any) -> Any:
    """Apply `gather` to every tensor of a collection."""
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(lambda one: gather(one) if isinstance(one, torch.Tensor) else one, data)


def accelerate() -> dict[str, Any]:
    """Return Accelerator and gather, which concatenates the ranks' tensors, without gradient."""
    import torch
    from torch import distributed as dist

    def gather_one(one: torch.Tensor) -> torch.Tensor:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return one
        one = one.detach().reshape(1) if one.ndim == 0 else one.detach().contiguous()
        parts = [torch.empty_like(one) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, one)
        return torch.cat(parts)

    def gather(tensor: Any) -> Any:
        return gathered(tensor, gather_one)

    class Accelerator:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def gather(self, tensor: Any) -> Any:
            return gather(tensor)

        gather_for_metrics = gather

        @property
        def num_processes(self) -> int:
            return dist.get_world_size() if dist.is_initialized() else 1

        @property
        def process_index(self) -> int:
            return dist.get_rank() if dist.is_initialized() else 0

        @property
        def local_process_index(self) -> int:
            return self.process_index

        @property
        def is_main_process(self) -> bool:
            return self.process_index == 0

    return {
        "Accelerator": Accelerator,
        "PartialState": Accelerator,
        "AcceleratorState": Accelerator,
        "gather": gather,
    }


def lightning() -> dict[str, Any]:
    """Return LightningModule and Fabric: `all_gather` stacks the ranks' tensors in a dimension of its own."""
    import warnings
    from functools import wraps

    import torch
    from torch import distributed as dist
    from torch.distributed.nn import functional

    class Collectives:
        def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
            def gather(one: torch.Tensor) -> torch.Tensor:
                if self.world_size == 1:
                    return one
                with torch.set_grad_enabled(sync_grads and torch.is_grad_enabled()):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # torch deprecates what the trainer calls
                        parts = functional.all_gather(one.contiguous(), group or dist.group.WORLD)
                    return torch.stack(list(parts))

            return gathered(data, gather)

        @property
        def world_size(self) -> int:
            return dist.get_world_size() if dist.is_initialized() else 1

        @property
        def global_rank(self) -> int:
            return dist.get_rank() if dist.is_initialized() else 0

        @property
        def local_rank(self) -> int:
            return self.global_rank

    class LightningModule(Collectives, torch.nn.Module):
        def log(self, *args: Any, **kwargs: Any) -> None:
            """Without a trainer, nothing is logged."""

        log_dict = log

        def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
            """Nothing is saved."""

        @property
        def device(self) -> torch.device:
            tensors = [*self.parameters(), *self.buffers()]
            return tensors[0].device if tensors else torch.device("cpu")

    class Fabric(Collectives):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def launch(self, *args: Any, **kwargs: Any) -> None:
            """The ranks run already."""

    def rank_zero_only(function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return None if dist.is_initialized() and dist.get_rank() else function(*args, **kwargs)

        return call

    def say(message: object, stacklevel: int = 4, **kwargs: Any) -> None:
        """Nothing is printed: what a trainer says is not about the loss."""

    said = dict.fromkeys(
        ("rank_zero_warn", "rank_zero_info", "rank_zero_debug", "rank_zero_deprecation"), say
    )
    return {"LightningModule": LightningModule, "Fabric": Fabric, "rank_zero_only": rank_zero_only} | said


@cache
def trainers(package: str) -> dict[str, Any]:
    """Return the stand-ins for a package's names; there are none for most packages."""
    if package in ("lightning", "pytorch_lightning", "lightning_fabric"):
        return lightning()
    return accelerate() if package == "accelerate" else {}


class Stub(ModuleType):
    """A module of a package that is not installed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.partition(".")[0] if self.__name__ not in STUBS.names else self.__name__
        known = trainers(package).get(name)
        return Placeholder(package, f"{self.__name__}.{name}") if known is None else known


class Stubs:
    """Finds the modules that are not installed, once they are known to be missing, and those beside a file."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.folders: list[str] = []
        self.loading = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how a module is made, after every other finder has found nothing."""
        if path is None and self.loading:
            for folder in self.folders:
                if Path(folder, f"{name}.py").is_file() or any(Path(folder, name).glob("*.py")):
                    return PathFinder.find_spec(name, [folder])
        if any(f"{name}.".startswith(f"{missing}.") for missing in self.names):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a stub."""
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stub holds nothing."""


STUBS = Stubs()


ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")


def above(path: Path) -> list[str]:
    """Return the folders above a file's, as far as the top of its repository."""
    found = []
    for folder in path.parents[:8]:
        found.append(str(folder))
        if any((folder / name).exists() for name in ROOTS):
            return found
    return found[:3]


def import_from(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    """Import a file under a name; it is an empty package where there is no file."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    if folders and not path.is_file():
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = folders
    assert spec is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_top(name: str, root: Path) -> str:
    """Import a package of a folder; return its name, which is another where the name is taken."""
    taken, folder = sys.modules.get(name), str(root / name)
    if taken is not None:
        if folder in [str(Path(one).resolve()) for one in getattr(taken, "__path__", [])]:
            return name
        name = f"_subject_{name}_{abs(hash(folder))}"
    import_from(name, Path(folder, "__init__.py"), [folder])
    return name


def package_of(path: Path, levels: int) -> tuple[str, Path]:
    """Return the name of a file as a module, and the folder that its topmost package lies in."""
    root, names = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while levels > 0 or (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root, levels = root.parent, levels - 1
    return ".".join(names), root


def relative_levels(path: Path) -> int:
    """Return how many folders up a file imports from: 0 where it has no relative imports."""
    imports = [one for one in ast.walk(ast.parse(path.read_bytes())) if isinstance(one, ast.ImportFrom)]
    return max((one.level for one in imports), default=0)


def load_file(path: Path) -> ModuleType:
    """Import a file: as a module of its package where it imports relatively, else alone."""
    if not path.is_file():
        raise FileNotFoundError(path)
    path = path.resolve()
    folders = [path.parent]  # as python does: it may import the files beside it
    if Path(path.parent, f"{path.parent.name}.py").is_file():
        folders.insert(0, path.parents[1])  # where a file is named like its package, the package comes first
    sys.path += [one for one in map(str, folders) if one not in sys.path]
    STUBS.folders += [one for one in above(path) if one not in STUBS.folders]
    if levels := relative_levels(path):
        name, root = package_of(path, levels)
        top, dot, rest = name.partition(".")
        return importlib.import_module(import_top(top, root) + dot + rest)
    return import_from(f"_subject_{path.stem}_{abs(hash(str(path)))}", path)


def in_python(file: str) -> bool:
    """Whether a file is of Python's own library."""
    return Path(file).is_relative_to(sysconfig.get_paths()["stdlib"])


def installed_in(file: str) -> str:
    """Return the top-level name of the installed package that a file is of, or nothing."""
    for folder in {sysconfig.get_paths()[one] for one in ("purelib", "platlib")}:
        if Path(file).is_relative_to(folder):
            return Path(file).relative_to(folder).parts[0].removesuffix(".py")
    return ""


def of_target(error: BaseException, place: str) -> bool:
    """Whether an import that failed stands in the target's own code, and not in an installed package."""
    importer, trace = "", error.__traceback__
    while trace:
        code = trace.tb_frame.f_code.co_filename
        if not code.startswith("<frozen") and (installed_in(code) or not in_python(code)):
            importer = code
        trace = trace.tb_next
    own = installed_in(str(Path(place).resolve())) if place.endswith(".py") else place.partition(".")[0]
    return installed_in(importer) in ("", own)


def load(place: str) -> ModuleType:
    """Import a target's module, named or a file; missing packages are stubbed, as they are met."""
    if STUBS not in sys.meta_path:
        sys.meta_path.append(STUBS)
    STUBS.loading = True
    try:
        for _ in range(MOST_STUBS):
            try:
                return load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
            except ModuleNotFoundError as error:
                name = error.name or ""
                itself = not place.endswith(".py") and f"{place}.".startswith(f"{name}.")
                if not name or itself or name in STUBS.names or not of_target(error, place):
                    raise
                STUBS.names.append(name)
        raise ImportError(f"{place}: more than {MOST_STUBS} packages are not installed")
    finally:
        STUBS.loading = False


def find_target() -> Any:
    """Return TARGET, seen from the current folder or from the one that this file was written from."""
    place, _, name = TARGET.rpartition(":")
    folders = [Path.cwd(), Path(__file__).resolve().parent / HOME]
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    if place.endswith(".py"):
        place = str(next((one / place for one in folders if (one / place).exists()), place))
    return getattr(load(place), name)


def verdict(rank: int) -> int:
    """Run one rank; return 0 where the law holds, 1 where it does not, 2 where that cannot be seen."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # a rank that hangs prints its stack
    try:
        target = find_target()
    except BaseException:
        traceback.print_exc()
        return 2
    if not ready(rank):
        return 2
    everyone = gathered(target, rank)
    return 0 if rank > 0 else decide(target, everyone)


def by_judge(target: Any, ranks: list[Any]) -> int:
    """Return 0 if the ranks' results agree with the expected ones, else 1."""
    return 0 if judge(target, ranks) else 1


def on_cpu(rank: int) -> bool:
    """The CPU is always there."""
    return True


def alone(target: Any, rank: int) -> list[Any]:
    """Return what the only rank saw."""
    return [act(target, rank)]


load, build, call, judge, decide, ready, gathered = load, construct, call_in_order, judge_term, by_judge, on_cpu, alone

if __name__ == "__main__":
    sys.exit(verdict(0))